//! An alarm on the clock that counts suspend.

use std::io;

use dlock::{Clock, SystemClock, Timestamp};

/// Sleeps until a moment of [`SystemClock`].
///
/// Tokio's timers stop while a machine sleeps. On Linux this is a timer of the boot clock, so that a machine that wakes
/// up past the lease lets dlock run at once; elsewhere the sleep is cut into slices.
pub(crate) struct Alarm {
    #[cfg(target_os = "linux")]
    timer: std::sync::Arc<rustix::fd::OwnedFd>,
    #[cfg(target_os = "linux")]
    rings: std::sync::Arc<tokio::sync::Notify>,
}

#[cfg(target_os = "linux")]
impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        use std::sync::Arc;

        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let timer = Arc::new(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?);
        let rings = Arc::new(tokio::sync::Notify::new());
        let (its_timer, its_rings) = (Arc::clone(&timer), Arc::clone(&rings));
        // A thread that waits in the kernel, as tokio takes no foreign descriptor without unsafe code. It ends with the
        // process.
        std::thread::Builder::new().name("dlock-alarm".to_owned()).spawn(move || {
            let mut count = [0; 8];
            while matches!(
                rustix::io::read(&its_timer, &mut count),
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN)
            ) {
                its_rings.notify_one();
            }
        })?;
        Ok(Self { timer, rings })
    }

    pub(crate) async fn at(&self, moment: Timestamp) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        let nanos = moment.as_nanos().max(1);
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (nanos % 1_000_000_000).try_into().expect("less than a thousand million fits"),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        while !moment.since(SystemClock.now()).is_zero() {
            self.rings.notified().await;
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    pub(crate) async fn at(&self, moment: Timestamp) -> io::Result<()> {
        const SLICE: std::time::Duration = std::time::Duration::from_millis(500);
        loop {
            let left = moment.since(SystemClock.now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(SLICE)).await;
        }
    }
}
