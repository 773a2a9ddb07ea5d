//! Whose clock a row's expiry was read on.

use std::fmt::Write as _;

use dlock_core::{Clock, SystemClock};

/// An id that two sessions share only if their clocks show the same time.
///
/// For the machine's boot clock that is the boot id and the offset of the time namespace, so processes in containers
/// that share a file and the kernel's clock agree. Not the namespace's number: the kernel gives it to another one as
/// soon as the first is gone. Whatever cannot be told is an id of its own for each session: such sessions take each
/// other's locks only by the observation of core, which needs no common clock.
pub(crate) fn of_clock(clock: &dyn Clock) -> String {
    // A reading between two of the boot clock is one of the boot clock: a test's clock never is.
    let before = SystemClock.now();
    let reading = clock.now();
    let after = SystemClock.now();
    let is_boot_clock = before <= reading && reading <= after;
    is_boot_clock.then(boot_clock).flatten().unwrap_or_else(unique)
}

/// An id that no other session has.
fn unique() -> String {
    let mut id = String::from("alone-");
    write!(id, "{:032x}", rand::random::<u128>()).expect("writing to a string never fails");
    id
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boot_clock() -> Option<String> {
    None
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_clock() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = boot.trim();
    let whole = boot.len() == 36 && boot.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    whole.then_some(())?;
    Some(format!("{boot}{}", time_namespace()?))
}

/// `+SECONDS.NANOSECONDS`, what the time namespace adds to the kernel's boot clock.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn time_namespace() -> Option<String> {
    use std::io::ErrorKind::NotFound;

    let own = match std::fs::read_link("/proc/self/ns/time") {
        Ok(own) => own,
        // A kernel without time namespaces, unless the whole folder is hidden.
        Err(error) if error.kind() == NotFound && std::fs::read_link("/proc/self/ns/pid").is_ok() => {
            return Some("+0.000000000".to_owned());
        }
        Err(_) => return None,
    };
    // The file of offsets is about the namespace of children, which is ours unless this process made a new one.
    (own == std::fs::read_link("/proc/self/ns/time_for_children").ok()?).then_some(())?;
    boot_offset(&std::fs::read_to_string("/proc/self/timens_offsets").ok()?)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_offset(offsets: &str) -> Option<String> {
    let line = offsets.lines().find_map(|line| line.trim_start().strip_prefix("boottime"))?;
    let mut numbers = line.split_ascii_whitespace();
    let seconds: i64 = numbers.next()?.parse().ok()?;
    let nanos: u32 = numbers.next()?.parse().ok()?;
    Some(format!("{seconds:+}.{nanos:09}"))
}

#[cfg(test)]
mod tests {
    use dlock_core::TestClock;

    use super::*;

    #[test]
    fn sessions_on_the_boot_clock_share_an_id() {
        let id = of_clock(&SystemClock);
        if cfg!(target_os = "linux") {
            assert_eq!(id, of_clock(&SystemClock));
            assert!(!id.starts_with("alone-"), "{id}");
        }
    }

    #[test]
    fn a_clock_of_a_test_is_alone() {
        let clock = TestClock::new();
        clock.jump(std::time::Duration::from_secs(1_000_000_000));
        assert!(of_clock(&clock).starts_with("alone-"));
        assert_ne!(of_clock(&clock), of_clock(&clock));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let offset = |text| boot_offset(text);
        assert_eq!(
            offset("monotonic           0         0\nboottime            0         0\n").unwrap(),
            "+0.000000000"
        );
        assert_eq!(offset("monotonic  5  0\nboottime  -604800  250000000\n").unwrap(), "-604800.250000000");
        assert_eq!(offset("1 0 0\n7 0 0\n"), None);
    }
}
