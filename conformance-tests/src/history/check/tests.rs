//! Bad histories made by hand, each of which must be found out, and good ones that must not.

use super::*;

/// Writes events at moments of its own.
struct Script(Vec<Event>);

/// An attempt of one of two processes.
fn id(number: u64) -> AttemptId {
    AttemptId { process: u32::from(number >= 100), number }
}

fn moment(nanos: u64, attempt: AttemptId) -> Moment {
    Moment { nanos, process: attempt.process, sequence: nanos }
}

impl Script {
    fn see(mut self, nanos: u64, number: u64, what: Seen) -> Self {
        let attempt = id(number);
        self.0.push(Event { at: moment(nanos, attempt), attempt, what });
        self
    }

    /// Asks for the lock "a" at `asked` and gets it at `got`.
    fn hold(self, number: u64, asked: u64, got: u64, token: u64) -> Self {
        self.hold_of("a", number, asked, got, token)
    }

    fn hold_of(self, name: &str, number: u64, asked: u64, got: u64, token: u64) -> Self {
        self.see(asked, number, Seen::Asked { who: format!("w{number}"), name: name.to_owned() }).see(
            got,
            number,
            Seen::Acquired { token },
        )
    }

    fn held(self, nanos: u64, number: u64) -> Self {
        self.see(nanos, number, Seen::Held(true))
    }

    fn wrote(self, called: u64, returned: u64, number: u64, taken_as: Option<u64>) -> Self {
        let called = moment(called, id(number));
        self.see(returned, number, Seen::Wrote { called, taken_as })
    }

    fn found(&self) -> Vec<Violation> {
        check(&self.0, Some(Duration::from_nanos(100))).err().map(|found| found.0).unwrap_or_default()
    }
}

fn script() -> Script {
    Script(Vec::new())
}

#[test]
fn a_sound_history_passes() {
    let script = script()
        .hold(1, 0, 10, 1)
        .held(20, 1)
        .wrote(21, 22, 1, Some(0))
        .held(23, 1)
        .see(30, 1, Seen::ReleaseCalled)
        .see(33, 1, Seen::Released)
        // Overlaps the return of the release, not its call.
        .hold(2, 5, 31, 2)
        .held(40, 2)
        .see(45, 2, Seen::Held(false))
        .hold(101, 7, 44, 9)
        .wrote(46, 47, 2, Some(1))
        .wrote(50, 51, 101, Some(2))
        .wrote(52, 53, 2, None)
        // Another name may be held at the same time with any token.
        .hold_of("b", 3, 0, 12, 1)
        .held(60, 3);
    let summary = check(&script.0, None).unwrap();
    assert_eq!(
        summary,
        Summary { attempts: 4, acquisitions: 4, losses: 1, writes_taken: 3, writes_refused: 1 }
    );
}

#[test]
fn finds_two_holders() {
    let found = script().hold(1, 0, 10, 1).held(20, 1).hold(2, 0, 15, 2).found();
    assert!(
        matches!(&found[..], [Violation::Overlap { earlier, later }] if earlier.token == 1 && later.token == 2)
    );
}

#[test]
fn finds_a_short_hold_inside_a_long_one() {
    // The overlap of the third with the first is behind the second, which is short.
    let found =
        script().hold(1, 0, 10, 1).held(100, 1).hold(2, 0, 15, 2).held(20, 2).hold(3, 0, 30, 3).found();
    let overlaps = found.iter().filter(|violation| matches!(violation, Violation::Overlap { .. })).count();
    assert_eq!(overlaps, 2);
}

#[test]
fn finds_two_holders_of_one_paused_moment() {
    let at = |sequence| Moment { nanos: 7, process: 0, sequence };
    let event = |sequence, number, what| Event { at: at(sequence), attempt: id(number), what };
    let asked = |number: u64| Seen::Asked { who: number.to_string(), name: "a".to_owned() };
    let events = [
        event(0, 1, asked(1)),
        event(1, 2, asked(2)),
        event(2, 1, Seen::Acquired { token: 1 }),
        event(3, 2, Seen::Acquired { token: 2 }),
        event(4, 1, Seen::Held(true)),
    ];
    assert!(matches!(check(&events, None).unwrap_err().0[..], [Violation::Overlap { .. }]));
}

#[test]
fn counts_a_hold_by_the_call_not_the_return() {
    // The first was frozen inside is_held(): its answer counts from its call.
    assert_eq!(script().hold(1, 0, 10, 1).held(14, 1).hold(2, 0, 15, 2).held(30, 2).found(), []);
}

#[test]
fn finds_a_release_that_was_said_to_find_a_claim_taken_over_before() {
    let found = script()
        .hold(1, 0, 10, 1)
        .hold(2, 0, 20, 2)
        .see(30, 1, Seen::ReleaseCalled)
        .see(31, 1, Seen::Released)
        .found();
    assert!(matches!(found[..], [Violation::Overlap { .. }]));
    let lost = script().hold(1, 0, 10, 1).hold(2, 0, 20, 2).see(30, 1, Seen::ReleaseCalled).see(
        31,
        1,
        Seen::AlreadyLost,
    );
    assert_eq!(lost.found(), []);
}

#[test]
fn finds_a_token_that_does_not_rise() {
    let found = script().hold(1, 0, 10, 7).hold(2, 11, 20, 6).found();
    assert!(matches!(&found[..], [Violation::TokenNotGreater { earlier, .. }] if earlier.token == 7));
    // The greatest counts, not the last.
    let found = script().hold(1, 0, 10, 7).hold(2, 0, 20, 5).hold(3, 30, 40, 6).found();
    assert!(
        matches!(&found[..], [Violation::TokenNotGreater { earlier, later }] if earlier.token == 7 && later.token == 6)
    );
}

#[test]
fn allows_a_smaller_token_that_was_asked_for_before() {
    // The second waited since before the first got the lock: P2 does not order these two.
    assert_eq!(script().hold(1, 5, 10, 7).hold(2, 4, 20, 6).found(), []);
}

#[test]
fn finds_a_repeated_token() {
    let found = script().hold(1, 0, 10, 7).hold(2, 0, 20, 7).found();
    assert!(matches!(found[..], [Violation::TokenRepeated { .. }]));
}

#[test]
fn finds_a_revived_guard() {
    let told = script().hold(1, 0, 10, 1).see(20, 1, Seen::Lost).held(21, 1).found();
    assert!(matches!(told[..], [Violation::Revived { .. }]));
    let answered = script().hold(1, 0, 10, 1).see(20, 1, Seen::Held(false)).held(21, 1).found();
    assert!(matches!(answered[..], [Violation::Revived { .. }]));
}

#[test]
fn finds_a_late_takeover() {
    let late = script().hold(1, 0, 10, 1).see(50, 1, Seen::Crashed).hold(2, 20, 151, 2).found();
    assert!(
        matches!(late[..], [Violation::LateTakeover { waited, .. }] if waited == Duration::from_nanos(101))
    );
    let asked_late = script().hold(1, 0, 10, 1).see(50, 1, Seen::Crashed).hold(2, 300, 390, 2);
    assert_eq!(asked_late.found(), []);
}

#[test]
fn finds_a_takeover_that_never_came() {
    let script = script()
        .hold(1, 0, 10, 1)
        .see(50, 1, Seen::Crashed)
        .see(60, 2, Seen::Asked { who: "w2".to_owned(), name: "a".to_owned() })
        .see(161, 2, Seen::GaveUp);
    assert!(matches!(script.found()[..], [Violation::LateTakeover { .. }]));
}

#[test]
fn finds_writes_out_of_order() {
    let found = script()
        .hold(1, 0, 10, 1)
        .hold(2, 0, 20, 2)
        .wrote(21, 22, 2, Some(0))
        .wrote(23, 24, 1, Some(1))
        .found();
    assert!(matches!(&found[..], [Violation::WritesOutOfOrder { later, .. }] if later.token == 1));
}

#[test]
fn finds_a_certain_write_that_was_refused() {
    let found = script().hold(1, 0, 10, 1).wrote(20, 22, 1, None).held(30, 1).found();
    assert!(matches!(found[..], [Violation::CertainWriteRefused { .. }]));
    // Not certain: the guard was not asked after.
    assert_eq!(script().hold(1, 0, 10, 1).wrote(20, 22, 1, None).found(), []);
}

#[test]
fn finds_a_record_without_an_acquisition() {
    let found = script()
        .see(0, 1, Seen::Asked { who: "w1".to_owned(), name: "a".to_owned() })
        .held(1, 1)
        .see(2, 2, Seen::GaveUp)
        .found();
    assert!(found.iter().all(|violation| matches!(violation, Violation::Nonsense { .. })));
    assert_eq!(found.len(), 2);
}

#[test]
fn concludes_nothing_from_an_open_end() {
    let script = script()
        .see(0, 1, Seen::Asked { who: "w1".to_owned(), name: "a".to_owned() })
        .hold(2, 0, 10, 1)
        .see(20, 2, Seen::ReleaseCalled)
        .see(30, 2, Seen::ReleaseUnknown)
        .hold(3, 0, 25, 2);
    assert_eq!(script.found(), []);
}

#[test]
fn checks_two_hundred_thousand_events_at_once() {
    let mut script = script();
    for number in 0..50_000_u64 {
        let start = number * 10;
        let number = 1000 + number;
        script =
            script.hold(number, start, start + 2, number).held(start + 4, number).held(start + 6, number);
    }
    assert_eq!(script.found(), []);
}
