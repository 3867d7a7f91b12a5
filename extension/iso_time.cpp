#include "extension/iso_time.hpp"

extern "C" {
#include "utils/datetime.h"
}

namespace pg_billing {
namespace {

// Reads from the left; once something did not fit, it stays bad.
class Reader {
  public:
    explicit Reader(std::string_view text) : text_(text) {}

    bool ok() const { return ok_; }
    void fail() { ok_ = false; }
    bool at_end() const { return text_.empty(); }
    bool next_is(char c) const { return !text_.empty() && text_.front() == c; }

    char take() {
        if (text_.empty()) {
            fail();
            return '\0';
        }
        const char c = text_.front();
        text_.remove_prefix(1);
        return c;
    }

    void expect(char c) { ok_ &= take() == c; }

    int number(int digits, int least, int most) {
        int value = 0;
        for (int i = 0; i < digits; i++) {
            const char c = take();
            ok_ &= c >= '0' && c <= '9';
            value = value * 10 + (c - '0');
        }
        ok_ &= value >= least && value <= most;
        return value;
    }

    // Microseconds, of one to six digits.
    int fraction() {
        int value = 0, place = 100'000;
        do {
            value += number(1, 0, 9) * place;
            place /= 10;
        } while (place > 0 && !text_.empty() && text_.front() >= '0' && text_.front() <= '9');
        return value;
    }

  private:
    std::string_view text_;
    bool ok_ = true;
};

// Reads Z or ±hh[[:]mm]: how far local time is ahead, in minutes.
int read_offset(Reader &reader) {
    const char sign = reader.take();
    if (sign == 'Z')
        return 0;
    if (sign != '+' && sign != '-')
        reader.fail();
    int minutes = reader.number(2, 0, 14) * 60;
    if (reader.next_is(':'))
        reader.take();
    if (!reader.at_end())
        minutes += reader.number(2, 0, 59);
    return sign == '-' ? -minutes : minutes;
}

}  // namespace

bool read_iso_time(std::string_view text, TimestampTz *time) {
    Reader reader(text);
    const int year = reader.number(4, 1, 9999);
    reader.expect('-');
    const int month = reader.number(2, 1, 12);
    reader.expect('-');
    const int day = reader.number(2, 1, 31);
    const char separator = reader.take();
    const int hour = reader.number(2, 0, 23);
    reader.expect(':');
    const int minute = reader.number(2, 0, 59);
    reader.expect(':');
    const int second = reader.number(2, 0, 59);
    int microseconds = 0;
    if (reader.next_is('.')) {
        reader.take();
        microseconds = reader.fraction();
    }
    const int offset = read_offset(reader);
    if (!reader.ok() || !reader.at_end() || (separator != 'T' && separator != ' ') ||
        day > day_tab[isleap(year)][month - 1])
        return false;
    const int64 days = date2j(year, month, day) - POSTGRES_EPOCH_JDATE;
    const int64 seconds = (int64{hour} * 60 + minute - offset) * 60 + second;
    *time = days * USECS_PER_DAY + seconds * USECS_PER_SEC + microseconds;
    return true;
}

}  // namespace pg_billing
