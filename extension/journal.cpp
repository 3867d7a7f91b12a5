#include "extension/journal.hpp"

#include <unordered_map>

#include "extension/sqlstate.hpp"

namespace pg_billing::journal {
namespace {

struct Entry {
    Counter *counter;
    int64 taken;  // added to the counter already; not negative
    int64 owed;   // added at commit: what was taken of what this transaction frees, less what it frees
    int nest_level;
};

// Lives as long as the backend. A transaction that uses a counter again finds its entry among the latest few.
Entry *entries;
int count, capacity;
constexpr int kLookBack = 32;

// What the entries owe, by counter; empty unless this transaction has freed something.
std::unordered_map<Counter *, int64> owed_on;

Entry *find(Counter *counter, int nest_level, int end) {
    for (int i = end - 1; i >= 0 && i >= end - kLookBack && entries[i].nest_level >= nest_level; i--)
        if (entries[i].counter == counter && entries[i].nest_level == nest_level)
            return &entries[i];
    return nullptr;
}

void make_room_for_one() {
    if (count < capacity)
        return;
    const int wanted = capacity ? capacity * 2 : 64;
    entries = static_cast<Entry *>(entries ? repalloc_huge(entries, wanted * sizeof(Entry))
                                           : MemoryContextAlloc(TopMemoryContext, wanted * sizeof(Entry)));
    capacity = wanted;
}

void owe(Entry *entry, int64 amount) {
    owed_on[entry->counter] += amount;
    entry->owed += amount;
}

void give_back_from(int nest_level) {
    for (; count > 0 && entries[count - 1].nest_level >= nest_level; count--) {
        const Entry &entry = entries[count - 1];
        add_to_counter(entry.counter, -entry.taken);
        if (entry.owed != 0)
            owed_on.find(entry.counter)->second -= entry.owed;
        unpin_counter(entry.counter);
    }
    if (count == 0)
        owed_on.clear();
}

// A counter may be owed by several entries: one sum for each, or somebody could see its number pass a cap in between.
void keep_all() {
    for (const auto &[counter, amount] : owed_on)
        if (amount != 0)
            add_to_counter(counter, amount);
    owed_on.clear();
    for (; count > 0; count--)
        unpin_counter(entries[count - 1].counter);
}

// Hands a committed subtransaction's entries to its parent, merged with what the parent has where it is near: a loop
// with an exception block then keeps the journal short.
void hand_to_parent(int nest_level) {
    int first = count;
    while (first > 0 && entries[first - 1].nest_level >= nest_level)
        first--;
    int kept = first;
    for (int i = first; i < count; i++) {
        const Entry entry = entries[i];
        if (Entry *parent = find(entry.counter, nest_level - 1, kept)) {
            parent->taken += entry.taken;
            parent->owed += entry.owed;
            unpin_counter(entry.counter);
        } else {
            entries[kept] = entry;
            entries[kept++].nest_level = nest_level - 1;
        }
    }
    count = kept;
}

void note_pinned(Counter *counter) {
    const int nest_level = GetCurrentTransactionNestLevel();
    if (find(counter, nest_level, count))
        unpin_counter(counter);  // this subtransaction holds it already
    else
        entries[count++] = {counter, 0, 0, nest_level};
}

extern "C" void at_transaction_event(XactEvent event, void *) {
    if (count == 0)
        return;
    switch (event) {
        case XACT_EVENT_COMMIT:
            keep_all();
            break;
        case XACT_EVENT_ABORT:
            give_back_from(0);
            break;
        case XACT_EVENT_PRE_PREPARE:
            refuse_prepare();
            break;
        default:
            break;
    }
}

extern "C" void at_subtransaction_event(SubXactEvent event, SubTransactionId, SubTransactionId, void *) {
    if (count == 0)
        return;
    if (event == SUBXACT_EVENT_ABORT_SUB)
        give_back_from(GetCurrentTransactionNestLevel());
    else if (event == SUBXACT_EVENT_COMMIT_SUB)
        hand_to_parent(GetCurrentTransactionNestLevel());
}

}  // namespace

bool any() {
    return count > 0;
}

void refuse_prepare() {
    ereport(ERROR, (errcode(sqlstate::kPrepareWithUsage),
                    errmsg("cannot prepare a transaction that has usage pending"),
                    errhint("Record usage in a transaction of its own, outside two-phase commit.")));
}

void init() {
    RegisterXactCallback(at_transaction_event, nullptr);
    RegisterSubXactCallback(at_subtransaction_event, nullptr);
}

Counter *hold(const CounterKey &key) {
    make_room_for_one();
    Counter *counter = pin_counter(key);
    if (counter)
        note_pinned(counter);
    return counter;
}

bool hold_again(const CounterRef &ref) {
    if (!ref.counter)
        return false;
    make_room_for_one();
    if (!repin_counter(ref))
        return false;
    note_pinned(ref.counter);
    return true;
}

int64 owed(Counter *counter) {
    if (owed_on.empty())
        return 0;
    const auto found = owed_on.find(counter);
    return found == owed_on.end() ? 0 : found->second;
}

Reserve reserve(Counter *counter, int64 amount, int64 limit, int64 *used) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    const int64 freed = -owed(counter);
    if (amount < 0) {
        owe(entry, amount);
        *used = counter_used(counter) - freed + amount;
        return Reserve::done;
    }
    const int64 reused = Min(amount, freed);
    const Reserve result = reserve_on_counter(counter, amount - reused, limit, used);
    *used -= freed;
    if (result == Reserve::done) {
        entry->taken += amount - reused;
        if (reused > 0)
            owe(entry, reused);
        *used += reused;
    }
    return result;
}

void undo(Counter *counter, int64 amount) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    const int64 added = Min(Max(amount, 0), entry->taken);
    entry->taken -= added;
    add_to_counter(counter, -added);
    if (added != amount)
        owe(entry, added - amount);
}

void release_unused(Counter *counter) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    if (entry == &entries[count - 1] && entry->taken == 0 && entry->owed == 0) {
        unpin_counter(counter);
        count--;
    }
}

}  // namespace pg_billing::journal
