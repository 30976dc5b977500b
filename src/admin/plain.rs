//! Metrics in Prometheus's older text format, for programs that do not know OpenMetrics.

use std::collections::BTreeSet;

/// Content type of [`from`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a client accepts this format and not OpenMetrics. Without wishes it gets OpenMetrics.
pub fn is_wanted(accept: &str) -> bool {
    accept.contains("text/plain") && !accept.contains("application/openmetrics-text")
}

/// The same metrics. There a counter is described by its whole name, and a unit is a comment like any other.
pub fn from(open_metrics: &str) -> String {
    let counters: BTreeSet<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.contains(name) => {
                text.extend([&line[.."# HELP ".len()], name, "_total ", rest, "\n"]);
            }
            None if line.starts_with('#') => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_whole_name_and_everything_else_stays() {
        let text = "# HELP a_b Bs\n# TYPE a_b counter\na_b_total{s=\"# x\"} 1\n# HELP g G\n# TYPE g gauge\n# UNIT g seconds\ng 2\n# EOF\n";
        let wanted =
            "# HELP a_b_total Bs\n# TYPE a_b_total counter\na_b_total{s=\"# x\"} 1\n# HELP g G\n# TYPE g gauge\ng 2\n";
        assert_eq!(from(text), wanted);
        assert!(is_wanted("text/plain;version=0.0.4") && !is_wanted("*/*") && !is_wanted(""));
        assert!(!is_wanted("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
    }
}
