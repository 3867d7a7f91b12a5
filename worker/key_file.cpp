#include "worker/key_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace pg_billing {
namespace {

// Returns what is wrong with the file's kind, owner or mode, or null. As for PostgreSQL's own private keys, a file
// of root's may be readable by a group, for else the server could not read it.
const char *objection(const struct stat &file) {
    if (!S_ISREG(file.st_mode))
        return "not a regular file";
    if (file.st_uid != geteuid() && file.st_uid != 0)
        return "owned neither by the server's user nor by root";
    if (file.st_uid == geteuid() ? file.st_mode & 0077 : file.st_mode & 0037)
        return "others have access to it: its mode must be 0600, or 0640 if root owns it";
    return nullptr;
}

// Reads the whole file, or says why not; what is read lands only in the caller's buffer.
const char *read_private(const std::string &path, char *buffer, std::size_t size) {
    // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return strerror(errno);
    struct stat status;
    const char *reason = fstat(file, &status) < 0 ? strerror(errno) : objection(status);
    std::size_t length = 0;
    while (!reason && length < size) {
        const ssize_t got = read(file, buffer + length, size - length);
        if (got < 0)
            reason = strerror(errno);
        if (got <= 0)
            break;
        length += static_cast<std::size_t>(got);
    }
    close(file);
    return !reason && length == size ? "too long for a key" : reason;
}

}  // namespace

ApiKey::ApiKey(const std::string &path, const char *what) {
    const char *reason = read_private(path, text_, sizeof(text_) - 1);
    if (!reason) {
        const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
        char *end = text_ + strlen(text_);
        char *from = std::find_if_not(text_, end, is_space);
        while (end > from && is_space(end[-1]))
            end--;
        std::memmove(text_, from, static_cast<std::size_t>(end - from));
        const std::size_t length = static_cast<std::size_t>(end - from);
        explicit_bzero(text_ + length, sizeof(text_) - length);
        if (length == 0)
            reason = "it is empty";
        else if (!std::all_of(text_, text_ + length, [](char c) { return c > ' ' && c < '\x7f'; }))
            reason = "it holds more than a key";
    }
    if (reason) {
        explicit_bzero(text_, sizeof(text_));
        throw std::runtime_error("cannot use " + std::string(what) + " file \"" + path + "\": " + reason);
    }
}

ApiKey::~ApiKey() {
    explicit_bzero(text_, sizeof(text_));
}

}  // namespace pg_billing
