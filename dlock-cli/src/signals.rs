//! The signals that dlock itself receives.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A signal that is meant for the command.
    Forward(Signal),
    /// Some child process changed its state.
    Child,
    /// dlock was continued, by a shell's `fg` for instance.
    Continued,
    /// Somebody wants dlock to stop, which it cannot do and renew a lock.
    Suspend,
}

/// Handlers for all signals of interest. While this lives none of them ends or stops dlock.
pub(crate) struct Signals(Vec<(Received, Stream)>);

impl Signals {
    /// Installs the handlers. A signal that is ignored, as HUP is under `nohup`, stays ignored, also in the command.
    pub(crate) fn install() -> io::Result<Self> {
        let ignored = ignored_signals();
        let mut streams = Vec::new();
        let mut add = |number: i32, received: Received| -> io::Result<()> {
            if ignored & (1 << (number - 1)) == 0 || matches!(received, Received::Child) {
                streams.push((received, signal(SignalKind::from_raw(number))?));
            }
            Ok(())
        };
        add(Signal::CHILD.as_raw(), Received::Child)?;
        for forwarded in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
            add(forwarded.as_raw(), Received::Forward(forwarded))?;
        }
        add(Signal::CONT.as_raw(), Received::Continued)?;
        add(Signal::TSTP.as_raw(), Received::Suspend)?;
        Ok(Self(streams))
    }

    /// The next signal.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no signal.
    pub(crate) async fn next(&mut self) -> Received {
        poll_fn(|cx| {
            for (received, stream) in &mut self.0 {
                if let Poll::Ready(Some(())) = stream.poll_recv(cx) {
                    return Poll::Ready(*received);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next signal that asks dlock to give up, as long as it runs no command.
    pub(crate) async fn next_to_end(&mut self) -> Signal {
        loop {
            match self.next().await {
                Received::Forward(signal) if signal != Signal::USR1 && signal != Signal::USR2 => {
                    return signal;
                }
                _ => {}
            }
        }
    }
}

/// The mask of the signals that were ignored when dlock started: the `SigIgn` line of Linux' `/proc/self/status`.
/// Elsewhere none are known.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
