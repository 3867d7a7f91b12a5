// libFuzzer target: no delivery is accepted that was not signed (see forgery.hpp).
#include <cstdint>
#include <cstdlib>

#include "test/fuzz/forgery.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    using namespace pg_billing::fuzz;
    if (try_delivery({reinterpret_cast<const char *>(data), size}) == Result::forged)
        std::abort();
    return 0;
}
