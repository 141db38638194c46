//! Logging: structured lines on stderr.
//!
//! - In: tracing events of the whole process.
//! - Out: one line an event on stderr, as text (coloured only on a terminal) or as JSON; panics are events too.
//! - Refuses: a filter that does not parse, and a second initialisation.
//! - Never does: block the thread that logs. Lines pass through a bounded queue to a thread of their own; when stderr is
//!   not read fast enough, lines are dropped, counted (`log_lines_dropped_total`) and the loss is said in the log.
//! - Never does: print a control character or a bidirectional control that came in with a value (see [`crate::text`]).
//! - Numbers: [`QUEUE_LINES`], [`LINE_MAX`], [`FLUSH_LIMIT`]; of a panic's backtrace 4 KiB, our own frames first.

use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::text;

mod backtrace;

/// Lines waiting for stderr. At a typical 200 bytes a line about 1.6 MB: a few tenths of a second of an access log at
/// full load, which rides out a stall of the reader without holding noticeable memory.
const QUEUE_LINES: usize = 8192;

/// Longest line, in bytes. A line is a handful of fields of at most [`text::FIELD_MAX`] each.
const LINE_MAX: usize = 16 * 1024;

/// Most bytes that the writer thread gathers into one write.
const BATCH_BYTES: usize = 64 * 1024;

/// How long the end of the process waits for queued lines. Above a slow disk's stall, below any drain deadline.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Pause before a write is tried again when stderr is a non-blocking descriptor that is full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Lines lost because stderr was slow. Process-wide, like the subscriber itself.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = InitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(InitError::Format(text::clean(other).into_owned())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The format has no such name.
    #[error("log format {0:?} is unknown: use text or json")]
    Format(String),
    /// The filter does not parse.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The writer thread did not start.
    #[error("log thread: {0}")]
    Thread(#[from] io::Error),
    /// Somebody else was first.
    #[error("logging is already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps logging alive; dropping it writes out what is queued. Hold it in `main`.
#[derive(Debug)]
#[must_use = "dropping the guard at once loses the lines that are still queued at the end"]
pub struct Guard {
    sender: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Sets logging up for the whole process. `filter` has the syntax of tracing's `EnvFilter`: `info,linkspan_gateway=debug`;
/// the access log is the target `access`.
///
/// # Errors
/// See [`InitError`].
pub fn init(format: Format, filter: &str) -> Result<Guard, InitError> {
    let filter = EnvFilter::try_new(filter)?;
    // <https://no-color.org>: whoever sets it wants no program to use colours.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = format == Format::Text && io::stderr().is_terminal() && !plain;
    let (sender, receiver) = mpsc::sync_channel(QUEUE_LINES);
    let lost = Arc::default();
    let writer = Writer { sender: sender.clone(), lost: Arc::clone(&lost), format, colours };
    let write = move || write_lines(&receiver, &lost, io::stderr(), format);
    thread::Builder::new().name("log".to_owned()).spawn(write)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(writer);
    match format {
        Format::Text => builder.finish().try_init()?,
        Format::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(Guard { sender })
}

/// How many log lines were lost since the process began.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

impl Drop for Guard {
    fn drop(&mut self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let (done, wait) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        // The queue may be full of lines that nobody reads: the end of the process must not wait for that reader.
        while let Err(TrySendError::Full(back)) = self.sender.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(RETRY_PAUSE);
        }
        // A writer that died has nothing left to flush.
        wait.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = backtrace::capture();
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(target: "panic", location, thread, backtrace, "{}", text::Clean(message));
}

#[derive(Clone, Debug)]
struct Writer {
    sender: SyncSender<Message>,
    /// Lines lost that the log has not been told about yet.
    lost: Arc<AtomicU64>,
    format: Format,
    colours: bool,
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// tracing-subscriber writes each event by one `write_all` of the whole line.
impl Write for &Writer {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(event, self.format, self.colours);
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The event as exactly one safe line of at most about [`LINE_MAX`] bytes.
fn one_line(event: &[u8], format: Format, colours: bool) -> Vec<u8> {
    let event = event.strip_suffix(b"\n").unwrap_or(event);
    if event.len() <= LINE_MAX && event.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        let mut line = Vec::with_capacity(event.len() + 1);
        line.extend_from_slice(event);
        line.push(b'\n');
        return line;
    }
    let whole = String::from_utf8_lossy(event);
    let kept = text::cut(&whole, LINE_MAX);
    let mut line = String::with_capacity(kept.len() + 64);
    let written = if kept.len() < whole.len() {
        cut_line(&mut line, kept, whole.len(), format)
    } else if colours {
        escape_but_colours(&mut line, kept)
    } else {
        text::escape_into(&mut line, kept)
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    line.push('\n');
    line.into_bytes()
}

/// A cut JSON object would be no JSON: the cut text becomes a string of a whole one.
fn cut_line(line: &mut impl std::fmt::Write, kept: &str, length: usize, format: Format) -> std::fmt::Result {
    match format {
        Format::Text => {
            text::escape_into(line, kept)?;
            write!(line, "… ({length} bytes)")
        }
        Format::Json => {
            let head = text::cut(kept, LINE_MAX / 4);
            let whole =
                serde_json::json!({ "level": "ERROR", "message": "log line too long", "length": length, "head": head });
            line.write_str(&text::json(&whole).map_err(|_| std::fmt::Error)?)
        }
    }
}

/// tracing-subscriber has escaped every ESC inside values, so what is left of the form `ESC [ digits m` is its own colour.
fn escape_but_colours(line: &mut String, kept: &str) -> std::fmt::Result {
    for (number, piece) in kept.split('\u{1b}').enumerate() {
        if number == 0 {
            text::escape_into(line, piece)?;
            continue;
        }
        let end = piece.find(|c: char| !(c.is_ascii_digit() || c == '[' || c == ';')).unwrap_or(piece.len());
        let (colour, rest) = piece.split_at(end);
        if colour.starts_with('[') && rest.starts_with('m') {
            line.push('\u{1b}');
            line.push_str(colour);
            text::escape_into(line, rest)?;
        } else {
            text::escape_into(line, "\u{1b}")?;
            text::escape_into(line, piece)?;
        }
    }
    Ok(())
}

fn write_lines(receiver: &Receiver<Message>, lost: &AtomicU64, mut out: impl Write, format: Format) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    while let Ok(first) = receiver.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            if batch.len() < BATCH_BYTES {
                next = receiver.try_recv().ok();
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            batch.extend_from_slice(&loss_line(lost, format));
        }
        write_all_patiently(&mut out, &batch);
        batch.clear();
        for done in flushed {
            // Nobody waits any more: nothing to tell.
            done.try_send(()).ok();
        }
    }
}

fn loss_line(lost: u64, format: Format) -> Vec<u8> {
    let message = "log lines were dropped: stderr is not read fast enough";
    match format {
        Format::Text => format!("WARN log: {message} lines={lost}\n").into_bytes(),
        Format::Json => {
            format!("{{\"level\":\"WARN\",\"target\":\"log\",\"message\":\"{message}\",\"lines\":{lost}}}\n")
                .into_bytes()
        }
    }
}

/// `write_all` for a descriptor that somebody (a shared terminal, a pipe's other end) has made non-blocking. Other errors
/// lose the batch: there is no place left to report them.
fn write_all_patiently(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return,
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
