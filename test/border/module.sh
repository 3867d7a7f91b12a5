# Builds the test modules of this folder; sourced after lib/e2e.sh.

# border_module NAME: test/border/NAME.cpp becomes $RUN/NAME.so; a warning is an error.
border_module() {
    ccache g++ -std=c++20 -O2 -g -fPIC -shared -Wall -Wextra -Werror -Wno-register -Wno-missing-field-initializers \
        -I"$TOP" -isystem "$("$PG_CONFIG" --includedir-server)" -o "$RUN/$1.so" "$TOP/test/border/$1.cpp"
}
