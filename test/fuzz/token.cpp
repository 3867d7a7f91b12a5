// libFuzzer target: no token is accepted but those that were made; of one, only the very text that was.
//
// An input is tried as it is, and once more as header and claims, with a line feed between them, that are encoded and signed
// with a secret nobody has.
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "shim/problem.hpp"
#include "shim/tokens.hpp"

namespace {

using namespace pg_billing::shim;

constexpr std::int64_t kNow = 1'700'000'000;

// Written in the corpus: signed with the secret below for an hour from kNow on.
constexpr std::string_view kMade =
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhY21lIiwiYXVkIjoicGdfYmlsbGluZyIsInNjb3BlI"
    "joidXNhZ2U6cmVhZCIsImlhdCI6MTcwMDAwMDAwMCwiZXhwIjoxNzAwMDAzNjAwfQ.ce5HGLlo3esHTQ6FCKMWbZOj"
    "FIlWaBAQXi0NaKv3vMM";

const Tokens &tokens() {
    static const Tokens tokens = [] {
        const char *path = "/tmp/pg_billing_fuzz_token_secret";
        std::ofstream(path) << "fuzz-0123456789abcdef0123456789abcdef\n";
        return Tokens({path}, {});
    }();
    return tokens;
}

void try_token(std::string_view token) {
    try {
        tokens().verify(token, kNow);
    } catch (const Problem &problem) {
        if (problem.status != 401)
            std::abort();
        return;
    }
    if (token != kMade)
        std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string_view input(reinterpret_cast<const char *>(data), size);
    try_token(input);
    const auto line = input.find('\n');
    if (line != input.npos)
        try_token(base64url(input.substr(0, line)) + "." + base64url(input.substr(line + 1)) + "." +
                  std::string(43, 'A'));
    return 0;
}
