#include "test/proof/run.hpp"

#include <cstdio>

namespace pg_billing::proof {

void Run::wrong(std::atomic<long> &kind, const std::string &what, long times) {
    kind += times;
    const std::lock_guard lock(output_);
    if (++told_ <= 20)
        fprintf(stderr, "wrong: %s\n", what.c_str());
}

bool Run::pause(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [&] { return stopped_.load(); });
    return !stopped_;
}

void Run::await(const std::string &what, const std::function<bool()> &condition) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return stopped_ || condition(); }))
        throw Stuck("waited in vain for " + what);
}

void Run::await_transactions(long more) {
    const long wanted = totals.transactions + more;
    await("transactions", [&] { return totals.transactions >= wanted; });
}

void Run::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

bool Run::enter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || !closed_; });
    if (stopped_)
        return false;
    inside_++;
    return true;
}

void Run::leave() {
    const std::lock_guard lock(mutex_);
    inside_--;
    changed_.notify_all();
}

void Run::close_gate() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    if (!changed_.wait_for(lock, kPatience, [&] { return stopped_ || inside_ == 0; }))
        throw Stuck("a client does not end its transaction");
}

void Run::open_gate() {
    const std::lock_guard lock(mutex_);
    closed_ = false;
    changed_.notify_all();
}

}  // namespace pg_billing::proof
