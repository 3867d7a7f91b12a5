#include "notify/address.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstring>

namespace pg_billing::notify {
namespace {

struct Block {
    std::uint32_t first;
    int bits;
};

constexpr std::uint32_t ip(unsigned a, unsigned b, unsigned c = 0) {
    return a << 24 | b << 16 | c << 8;
}

// IANA's special-purpose addresses that are not globally reachable, multicast and what is reserved.
constexpr Block kNotPublic[] = {
    {ip(0, 0), 8},         {ip(10, 0), 8},     {ip(100, 64), 10},   {ip(127, 0), 8},
    {ip(169, 254), 16},    {ip(172, 16), 12},  {ip(192, 0, 0), 24}, {ip(192, 0, 2), 24},
    {ip(192, 88, 99), 24}, {ip(192, 168), 16}, {ip(198, 18), 15},   {ip(198, 51, 100), 24},
    {ip(203, 0, 113), 24}, {ip(224, 0), 4},    {ip(240, 0), 4},
};

bool is_public_v4(std::uint32_t address) {
    for (const Block &block : kNotPublic)
        if ((address ^ block.first) >> (32 - block.bits) == 0)
            return false;
    return true;
}

std::uint32_t v4_at(const std::uint8_t *bytes) {
    return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
           static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

bool is_public_v6(const std::uint8_t *a) {
    static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static constexpr std::uint8_t kTranslated[12] = {0, 0x64, 0xff, 0x9b};  // NAT64
    if (memcmp(a, kMapped, sizeof kMapped) == 0 || memcmp(a, kTranslated, sizeof kTranslated) == 0)
        return is_public_v4(v4_at(a + 12));
    if (a[0] == 0x20 && a[1] == 0x02)  // 6to4
        return is_public_v4(v4_at(a + 2));
    const bool protocols =
        a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xfe) == 0;  // 2001::/23, Teredo among them
    const bool documentation = (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8) ||
                               (a[0] == 0x3f && a[1] == 0xff && a[2] < 0x10);
    return (a[0] & 0xe0) == 0x20 && !protocols && !documentation;  // 2000::/3
}

}  // namespace

bool is_public(const sockaddr *address) {
    if (address->sa_family == AF_INET)
        return is_public_v4(ntohl(reinterpret_cast<const sockaddr_in *>(address)->sin_addr.s_addr));
    if (address->sa_family == AF_INET6)
        return is_public_v6(reinterpret_cast<const sockaddr_in6 *>(address)->sin6_addr.s6_addr);
    return false;
}

}  // namespace pg_billing::notify
