# Sanitizers (ASan, UBSan) in PostgreSQL's processes; sourced before servers are started, which inherit the options.
#
# A report ends the process that makes it, which fails the test at hand; where nobody is connected to that process (a
# background worker), sanitizer_reports finds the report in the server's log.

# PostgreSQL frees no memory at exit, and measures its stack by the addresses of local variables. UBSan without ASan
# never sees its options: it first looks for them when PostgreSQL has overwritten its environment with its title.
# stdbuf preloads a library before ASan's, which does not matter here.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=1:verify_asan_link_order=0
export UBSAN_OPTIONS=print_stacktrace=1

# sanitizer_reports DIRECTORY: prints what sanitizers and assertions said in the logs below it; fails when nothing.
sanitizer_reports() {
    grep -rE -A12 --include=log --include='*.log' 'runtime error: |AddressSanitizer|^TRAP: ' "$1"
}
