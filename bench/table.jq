# bench.json as a Markdown table that reads well unrendered, too.
def digits(n): . * pow(10; n) | round / pow(10; n) | tostring;
def number: if . >= 100 then round | tostring | [scan("\\d+?(?=(?:\\d{3})*$)")] | join(",")
            elif . >= 10 then digits(1) else digits(2) end;
def pad(n): . + " " * (n - length);

.machine as $m
| [["what", "ours", "peer", "ratio", "rounds", "goal", ""]]
  + [.results[] | [
        .what,
        "\(.ours_median | number) \(.unit)",
        (if .peer then .peer_median | number else "" end),
        (if .peer then .figure | digits(2) else "" end),
        "\(.figure_min | number) – \(.figure_max | number)",
        (if .min and .max then "\(.min) – \(.max)" elif .min then "≥ \(.min)" elif .max then "≤ \(.max)" else "" end),
        (if .met == null then "" elif .met then "met" else "**not met**" end)
    ]]
| . as $rows
| [range($rows[0] | length) as $c | $rows | map(.[$c] | length) | max] as $widths
| def line: "| " + ([range(length) as $c | .[$c] | pad($widths[$c])] | join(" | ")) + " |";
  ["\($m.date), commit \($m.commit): \($m.cores) × \($m.cpu), \($m.memory), \($m.kernel), PostgreSQL \($m.postgresql).",
   "A durable write of 8 kB takes \($m.fsync_ms) ms. \($m.rounds) rounds of \($m.seconds) s; medians.",
   "",
   ($rows[0] | line),
   "|" + ($widths | map("-" * (. + 2)) | join("|")) + "|",
   ($rows[1:][] | line)]
| .[]
