#include "worker/export_files.hpp"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "worker/settings.hpp"

namespace pg_billing {
namespace {

// Whoever is in the directory's group may read the files, whatever the server's umask.
constexpr mode_t kMode = 0640;

class Descriptor {
  public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor &) = delete;
    ~Descriptor() {
        if (number_ >= 0)
            close(number_);
    }
    operator int() const { return number_; }

  private:
    const int number_;
};

bool write_all(int file, std::string_view content) {
    while (!content.empty()) {
        const ssize_t written = write(file, content.data(), content.size());
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        content.remove_prefix(static_cast<std::size_t>(written));
    }
    return true;
}

// Returns what went wrong; nothing if the file is on the disk.
Value write_file(const std::string &directory, const std::string &name, std::string_view content) {
    const auto failed = [](const char *step) { return std::string(step) + ": " + strerror(errno); };
    if (!directory.starts_with('/'))
        return "pg_billing.export_directory is not an absolute path";
    const Descriptor folder(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder < 0)
        return failed("cannot open the directory");
    // Hidden, and of a suffix that no reader of *.ndjson takes. What a crash has left is written over.
    const std::string draft = "." + name + ".tmp";
    {
        const Descriptor file(
            openat(folder, draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, kMode));
        if (file < 0)
            return failed("cannot create the file");
        if (fchmod(file, kMode) < 0 || !write_all(file, content) || fsync(file) < 0)
            return failed("cannot write the file");
    }
    if (renameat(folder, draft.c_str(), folder, name.c_str()) < 0 || fsync(folder) < 0)
        return failed("cannot give the file its name");
    return {};
}

}  // namespace

void export_usage(Session &session) {
    const std::string directory = text_setting("pg_billing.export_directory");
    if (directory.empty())
        return;
    for (;;) {
        session.serve_interrupts();
        const std::vector<Row> files = session.transaction("freezing usage for a file", [&] {
            return session.query("SELECT number, name, content FROM billing._next_export_file()");
        });
        if (files.empty())
            break;
        const Row &file = files.front();
        const Value trouble = write_file(directory, *file[1], *file[2]);
        session.transaction("noting a file of usage", [&] {
            session.query("SELECT billing._export_settled($1::bigint, $2)", {file[0], trouble});
        });
        if (trouble) {
            session.notice("usage cannot be exported to " + *file[1] + ": " + *trouble);
            return;
        }
    }
    session.notice("");
}

}  // namespace pg_billing
