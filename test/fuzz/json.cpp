// libFuzzer target: a request body is refused with a Problem, or read so that writing it gives what is read the same again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "shim/json.hpp"
#include "shim/problem.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    using namespace pg_billing::shim;
    try {
        std::string once, twice;
        write_json(once, parse_json({reinterpret_cast<const char *>(data), size}));
        write_json(twice, parse_json(once));
        if (once != twice)
            std::abort();
    } catch (const Problem &) {
    }
    return 0;
}
