// Many requests as the arrays that one call of a function takes.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "shim/caller.hpp"

namespace pg_billing::shim {

// An array as PostgreSQL reads it, of elements as it reads those; absent is NULL.
class Array {
  public:
    void add(const std::optional<std::string> &element);
    std::string take() { return text_.empty() ? "{}" : std::move(text_) + "}"; }

  private:
    std::string text_;
};

// Who calls, each once: few, and mostly one.
class Callers {
  public:
    // Returns a caller's number, from 1 on.
    std::size_t number_of(const Credential &caller);
    std::size_t size() const { return callers_.size(); }

    Array keys, tenants;  // by number

  private:
    std::vector<Credential> callers_;
};

}  // namespace pg_billing::shim
