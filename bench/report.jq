# Runs, machine and goals to bench.json. A ratio is that of the medians; its range is that of the rounds' own ratios.
def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def grouped: tostring | [scan("\\d+?(?=(?:\\d{3})*$)")] | join(",");

($runs | group_by(.series) | map({
    key: .[0].series,
    value: {unit: .[0].unit, median: (map(.value) | median), min: (map(.value) | min), max: (map(.value) | max),
            runs: (sort_by(.round) | map(.value))}
}) | from_entries) as $series
| {
    machine: $machine[0],
    results: [
        $goals[0][]
        | . as $goal
        | $series[.ours] as $ours
        | (if .peer then $series[.peer] else null end) as $peer
        | select($ours and ($peer or (.peer | not)))
        | (if $peer then $ours.median / $peer.median else $ours.median end) as $figure
        | (if $peer then [range($ours.runs | length) | $ours.runs[.] / $peer.runs[.]] else $ours.runs end) as $each
        | .what |= (gsub("\\{small\\}"; $machine[0].small | grouped) | gsub("\\{large\\}"; $machine[0].large | grouped))
        | . + {
            unit: $ours.unit, ours_median: $ours.median, peer_median: (if $peer then $peer.median else null end),
            figure: $figure, figure_min: ($each | min), figure_max: ($each | max),
            met: (if .min or .max then ($goal.min // 0) <= $figure and $figure <= ($goal.max // infinite) else null end)
          }
    ],
    series: $series
  }
