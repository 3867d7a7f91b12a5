#!/usr/bin/env bash
# tests wait for conditions, never for a number of seconds
! git grep -nIE '\bsleep +[0-9]|pg_sleep\(|sleep_for|setTimeout\(' -- test ':!test/checks/waiting.sh'
