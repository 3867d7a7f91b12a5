#include "extension/journal.hpp"

#include "extension/sqlstate.hpp"

namespace pg_billing::journal {
namespace {

struct Entry {
    Counter *counter;
    int64 taken;  // added to the counter already
    int64 owed;   // negative: added at commit
    int nest_level;
};

// Lives as long as the backend. A transaction that uses a counter again finds its entry among the latest few.
Entry *entries;
int count, capacity;
constexpr int kLookBack = 32;

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

void give_back_from(int nest_level) {
    for (; count > 0 && entries[count - 1].nest_level >= nest_level; count--) {
        add_to_counter(entries[count - 1].counter, -entries[count - 1].taken);
        unpin_counter(entries[count - 1].counter);
    }
}

void keep_all() {
    for (; count > 0; count--) {
        add_to_counter(entries[count - 1].counter, entries[count - 1].owed);
        unpin_counter(entries[count - 1].counter);
    }
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
            ereport(ERROR, (errcode(sqlstate::kPrepareWithUsage),
                            errmsg("cannot prepare a transaction that has usage pending"),
                            errhint("Record usage in a transaction of its own, outside two-phase commit.")));
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

Reserve reserve(Counter *counter, int64 amount, int64 limit, int64 *used) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    if (amount < 0) {
        entry->owed += amount;
        *used = counter_used(counter) + entry->owed;
        return Reserve::done;
    }
    const Reserve result = reserve_on_counter(counter, amount, limit, used);
    if (result == Reserve::done)
        entry->taken += amount;
    return result;
}

void undo(Counter *counter, int64 amount) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    if (amount < 0) {
        entry->owed -= amount;
        return;
    }
    entry->taken -= amount;
    add_to_counter(counter, -amount);
}

void release_unused(Counter *counter) {
    Entry *entry = find(counter, GetCurrentTransactionNestLevel(), count);
    if (entry == &entries[count - 1] && entry->taken == 0 && entry->owed == 0) {
        unpin_counter(counter);
        count--;
    }
}

}  // namespace pg_billing::journal
