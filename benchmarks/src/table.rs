//! The table that is printed, line by line as the figures come.

use crate::figures::Figures;

/// What a figure counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Nanoseconds,
    Bytes,
    Times,
}

pub(crate) fn heading() {
    line("", ["median", "min", "max"], "target");
}

pub(crate) fn section(title: &str) {
    println!("\n{title}");
}

pub(crate) fn row(what: &str, unit: Unit, figures: Figures) {
    row_with_target(what, unit, figures, "");
}

/// The target is printed beside the figures and never enforced: a busy machine is no defect of the program.
pub(crate) fn row_with_target(what: &str, unit: Unit, figures: Figures, target: &str) {
    let Figures { median, min, max } = figures;
    let [median, min, max] = [median, min, max].map(|value| shown(value, unit));
    line(what, [&median, &min, &max], target);
}

fn line(what: &str, [median, min, max]: [&str; 3], target: &str) {
    println!("{}", format!("  {what:<64}{median:>11}{min:>11}{max:>11}   {target}").trim_end());
}

fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Nanoseconds if value < 1e3 => format!("{value:.0} ns"),
        Unit::Nanoseconds if value < 1e6 => format!("{:.2} us", value / 1e3),
        Unit::Nanoseconds => format!("{:.2} ms", value / 1e6),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Times => format!("{value:.1}"),
    }
}
