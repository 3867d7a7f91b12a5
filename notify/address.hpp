// Where a tenant's webhook may go: to the internet, not to the server's own network (server-side request forgery).
#pragma once

struct sockaddr;

namespace pg_billing::notify {

// Tells whether an address is one that the whole internet reaches: neither private, loopback, link-local, multicast nor
// reserved, nor an IPv6 form of such an IPv4 address. What is neither IPv4 nor IPv6 is not.
bool is_public(const sockaddr *address);

}  // namespace pg_billing::notify
