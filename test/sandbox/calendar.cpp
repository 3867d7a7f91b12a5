#include "test/sandbox/calendar.hpp"

#include <algorithm>
#include <chrono>

namespace pg_billing::sandbox {
namespace {

using namespace std::chrono;

constexpr std::int64_t kDay = 86'400;

std::int64_t add_months(std::int64_t time, int months_to_add) {
    const sys_seconds point{seconds(time)};
    const sys_days day = floor<days>(point);
    const year_month_day date{day};
    const year_month target = year_month{date.year(), date.month()} + months(months_to_add);
    const auto last = year_month_day_last{target.year(), month_day_last{target.month()}}.day();
    const year_month_day moved{target.year(), target.month(), std::min(date.day(), last)};
    return sys_seconds{sys_days{moved}}.time_since_epoch().count() + (point - day).count();
}

}  // namespace

std::int64_t Cycle::at(int steps) const {
    const int count = steps * interval_count;
    if (interval == "day")
        return reference + count * kDay;
    if (interval == "week")
        return reference + count * 7 * kDay;
    return add_months(reference, shift + (interval == "year" ? count * 12 : count));
}

int Cycle::steps_to_after(std::int64_t time) const {
    const std::int64_t longest = (interval == "day"     ? kDay
                                  : interval == "week"  ? 7 * kDay
                                  : interval == "month" ? 31 * kDay
                                                        : 366 * kDay) *
                                 interval_count;
    // An underestimate to count up from, or (before the reference) an overestimate to count down from.
    int steps = static_cast<int>((time - reference) / longest);
    while (at(steps) > time)
        --steps;
    while (at(steps) <= time)
        ++steps;
    return steps;
}

std::int64_t Cycle::after(std::int64_t time) const {
    return at(steps_to_after(time));
}

std::int64_t Cycle::not_after(std::int64_t time) const {
    return at(steps_to_after(time) - 1);
}

int month_number(std::int64_t time) {
    const year_month_day date{floor<days>(sys_seconds{seconds(time)})};
    return static_cast<int>(date.year()) * 12 + static_cast<int>(static_cast<unsigned>(date.month())) - 1;
}

Cycle cycle_on(int day_of_month, int hour, int minute, int second, std::int64_t near) {
    const year_month_day date{floor<days>(sys_seconds{seconds(near)})};
    // January has every day, so no boundary is clipped twice.
    const sys_days day{
        year_month_day{date.year(), January, std::chrono::day(static_cast<unsigned>(day_of_month))}};
    const auto time = sys_seconds{day} + hours(hour) + minutes(minute) + seconds(second);
    return {time.time_since_epoch().count()};
}

}  // namespace pg_billing::sandbox
