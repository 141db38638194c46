//! Frames of an HTTP/2 client that cost us more than they cost the client. No I/O.
//!
//! - In: the bytes that a client sends, in any pieces; how many are sent to it; the time.
//! - Out: nothing, as long as the client may go on.
//! - Refuses when: it sends frames that carry nothing without end, resets most of what it asks for, or goes on with one block
//!   of fields beyond what is read of it (S-23, S-24, S-26). The connection is then cut: h2 has limits of its own for what
//!   breaks the protocol, but answers each of these as often as it comes.
//! - Never does: keep or change a byte, look at anything but the nine bytes before a frame.
//! - Numbers: [`EMPTY`], [`EMPTY_EVERY`], [`PER_BYTES`], [`PER_REQUEST`], [`RESETS`], [`RESETS_WITHIN`].

use std::time::Duration;

use tokio::time::Instant;

use super::MAX_HEAD;

/// Frames without content (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, ...) that may come at once: some 10 ms of CPU.
const EMPTY: u64 = 10_000;

/// One more is allowed after each of these: a thousand a second are a thousandth of a core.
const EMPTY_EVERY: Duration = Duration::from_millis(1);

/// One more is allowed for so many bytes of content, in either direction: clients acknowledge what they read by
/// WINDOW_UPDATE, some of them every frame.
const PER_BYTES: u64 = 64;

/// So many are allowed for each request.
const PER_REQUEST: u64 = 8;

/// Requests that a client may reset within [`RESETS_WITHIN`], and more if it lets as many others be. A client that
/// cancels what it does not need any more stays far below; a rapid reset is over here.
const RESETS: u64 = 1000;

/// See [`RESETS`].
const RESETS_WITHIN: Duration = Duration::from_secs(10);

/// What a client with prior knowledge sends first (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// Length, type, flags and stream of a frame.
const FRAME_HEAD: usize = 9;

/// Why a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    /// Beyond [`EMPTY`].
    #[error("too many HTTP/2 frames without content")]
    Empty,
    /// Beyond [`RESETS`].
    #[error("too many HTTP/2 requests that were reset")]
    Resets,
    /// Beyond [`MAX_HEAD`].
    #[error("an HTTP/2 field block of more than {MAX_HEAD} bytes")]
    Fields,
}

/// Watches what one client sends.
#[derive(Debug)]
pub(super) struct Watch {
    /// Bytes until the next frame begins.
    skip: usize,
    head: [u8; FRAME_HEAD],
    /// How much of `head` is there.
    have: usize,
    /// Bytes of the field block that is not at its end.
    block: usize,
    /// Empty frames that may still come, before what was earned meanwhile.
    left: u64,
    content: u64,
    opened: u64,
    earned_at: Instant,
    recent: Recent,
}

#[derive(Debug)]
struct Recent {
    since: Instant,
    opened: u64,
    resets: u64,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE,
            head: [0; FRAME_HEAD],
            have: 0,
            block: 0,
            left: EMPTY,
            content: 0,
            opened: 0,
            earned_at: now,
            recent: Recent { since: now, opened: 0, resets: 0 },
        }
    }

    /// So many bytes were sent to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.content += bytes as u64;
    }

    /// Looks at what came from it.
    pub(super) fn came(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let part = (FRAME_HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == FRAME_HEAD {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Flood> {
        const END_STREAM: u8 = 0x1;
        const END_HEADERS: u8 = 0x4;
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.skip = length;
        match kind {
            // DATA
            0 if length > 0 => self.content += length as u64,
            0 if flags & END_STREAM != 0 => {}
            // HEADERS
            1 => {
                self.opened += 1;
                self.recent.opened += 1;
                self.block = 0;
                return self.fields(length, flags & END_HEADERS != 0);
            }
            // RST_STREAM
            3 => return self.reset(),
            // CONTINUATION
            9 => {
                self.empty()?;
                return self.fields(length, flags & END_HEADERS != 0);
            }
            _ => return self.empty(),
        }
        Ok(())
    }

    fn fields(&mut self, length: usize, ends: bool) -> Result<(), Flood> {
        self.block += length;
        if self.block > MAX_HEAD {
            return Err(Flood::Fields);
        }
        if ends {
            self.block = 0;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Flood> {
        self.recent.resets += 1;
        // The clock is asked only where it matters.
        if self.recent.resets <= RESETS {
            return Ok(());
        }
        let now = Instant::now();
        if now.duration_since(self.recent.since) > RESETS_WITHIN {
            self.recent = Recent { since: now, opened: 0, resets: 0 };
            return Ok(());
        }
        if self.recent.resets * 2 > self.recent.opened { Err(Flood::Resets) } else { Ok(()) }
    }

    fn empty(&mut self) -> Result<(), Flood> {
        if self.left == 0 {
            self.earn(Instant::now());
        }
        self.left = self.left.checked_sub(1).ok_or(Flood::Empty)?;
        Ok(())
    }

    /// Takes in what the connection did and the time that went by since the last call.
    fn earn(&mut self, now: Instant) {
        let waited = now.duration_since(self.earned_at).as_micros() / EMPTY_EVERY.as_micros();
        let waited = u64::try_from(waited).unwrap_or(u64::MAX);
        let earned = (self.content / PER_BYTES).saturating_add(self.opened.saturating_mul(PER_REQUEST));
        self.left = earned.saturating_add(waited).min(EMPTY);
        if waited > 0 {
            self.earned_at = now;
        }
        (self.content, self.opened) = (self.content % PER_BYTES, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let length_bytes = u32::try_from(length).unwrap().to_be_bytes();
        let mut bytes = vec![length_bytes[1], length_bytes[2], length_bytes[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(FRAME_HEAD + length, 0);
        bytes
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(Instant::now());
        watch.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        watch
    }

    /// How many of these are let through, of a million.
    fn let_through(watch: &mut Watch, frames: &[Vec<u8>]) -> usize {
        frames.iter().cycle().take(1_000_000).take_while(|frame| watch.came(frame).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn s_26_a_million_frames_without_content_are_cut_off_at_ten_thousand() {
        for (kind, flags, length) in [
            (PING, 0, 8),
            (SETTINGS, 0, 0),
            (WINDOW_UPDATE, 0, 4),
            (2, 0, 5),
            (7, 0, 8),
            (0, 0, 0),
            (0x20, 0, 3),
            (9, 0, 0),
        ] {
            assert_eq!(let_through(&mut watch(), &[frame(kind, flags, length)]), 10_000, "type {kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn s_23_a_rapid_reset_is_cut_off_at_a_thousand() {
        let pair = [frame(1, 4, 20), frame(3, 0, 4)];
        assert_eq!(let_through(&mut watch(), &pair), 2001);
    }

    #[tokio::test(start_paused = true)]
    async fn s_24_a_field_block_without_end_is_cut_off_at_its_cap() {
        let mut watch = watch();
        watch.came(&frame(1, 0, 16 * 1024)).unwrap();
        let piece = [frame(9, 0, 1024)];
        assert_eq!(let_through(&mut watch, &piece), 48);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_use_what_they_ask_for_are_never_cut_off() {
        // One that cancels four of ten, one that acknowledges every frame, one that pings twice a second for a week.
        let mut watch = watch();
        for number in 0..100_000_u32 {
            watch.came(&frame(1, 4, 50)).unwrap();
            if number % 10 < 4 {
                watch.came(&frame(3, 0, 4)).unwrap();
            }
            watch.sent(200);
            watch.came(&frame(WINDOW_UPDATE, 0, 4)).unwrap();
            watch.came(&frame(WINDOW_UPDATE, 0, 4)).unwrap();
        }
        let mut watch = self::watch();
        for _ in 0..1_000_000 {
            tokio::time::advance(Duration::from_millis(500)).await;
            watch.came(&frame(PING, 0, 8)).unwrap();
        }
        // And one whose long calls all end by being cancelled.
        let mut watch = self::watch();
        for _ in 0..100_000 {
            tokio::time::advance(Duration::from_millis(20)).await;
            watch.came(&frame(1, 4, 50)).unwrap();
            watch.came(&frame(3, 0, 4)).unwrap();
        }
    }

    proptest! {
        #[test]
        fn what_is_seen_does_not_depend_on_how_the_bytes_were_split(
            frames in proptest::collection::vec((0_u8..12, 0_u8..8, 0_usize..40_000), 0..60),
            cuts in proptest::collection::vec(1_usize..5000, 1..50),
        ) {
            let all: Vec<u8> = frames.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)).collect();
            let whole = watch().came(&all);
            let mut watch = watch();
            let mut pieces = Ok(());
            let mut rest = &all[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || pieces.is_err() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces = watch.came(piece);
                rest = more;
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
