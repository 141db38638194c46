//! A question to a DNS server without a process for it: for tests that ask some thousand times.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The header, and behind each name type and class.
const HEADER: usize = 12;

/// The first of [`addresses`].
pub fn address(server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    addresses(server, name)?.first().copied()
}

/// The IPv4 addresses that `server` has for `name`; `None` where it says nothing.
pub fn addresses(server: SocketAddr, name: &str) -> Option<Vec<Ipv4Addr>> {
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    socket.set_read_timeout(Some(TIMEOUT)).ok()?;
    socket.connect(server).ok()?;
    socket.send(&question(name)).ok()?;
    let mut answer = [0; 1232];
    let length = socket.recv(&mut answer).ok()?;
    all(answer.get(..length)?)
}

/// A question for A, with recursion desired (RFC 1035 section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x4c, 0x53, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// The addresses in an answer to one question.
fn all(answer: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let mut found = Vec::new();
    let count = u16::from_be_bytes(*answer.get(6..)?.first_chunk()?);
    let mut at = skip_name(answer, HEADER)? + 4;
    for _ in 0..count {
        at = skip_name(answer, at)?;
        let fields: &[u8; 10] = answer.get(at..)?.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([fields[8], fields[9]]));
        at += fields.len();
        if fields[..2] == [0, 1] && length == 4 {
            found.push(Ipv4Addr::from(*answer.get(at..)?.first_chunk::<4>()?));
        }
        at += length;
    }
    Some(found)
}

/// Behind the name at `at`: its labels up to the empty one, or up to a pointer.
fn skip_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
