// Keeps workers out of the way of commands that need a database without connections: DROP DATABASE, ALTER
// DATABASE RENAME and SET TABLESPACE, CREATE DATABASE with a template. PostgreSQL itself waits 5 s for other
// sessions and then fails.
#pragma once

namespace pg_billing {

// Puts our hook before whatever handles utility statements; called once, while preloading.
void install_utility_hook();

}  // namespace pg_billing
