//! One DNS question to the site's own server: the address of a mirrored name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long an answer may take; the server is on this machine.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The first A record of `name`; `None` while there is none.
pub(crate) fn address(server: SocketAddr, name: &str) -> anyhow::Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send_to(&question(name), server)?;
    let mut answer = [0; 1500];
    match socket.recv(&mut answer) {
        Ok(length) => Ok(first_address(&answer[..length])),
        // The server is about to start, or busy: the caller asks again.
        Err(_) => Ok(None),
    }
}

/// RFC 1035 section 4: a header with one question, of type A and class IN.
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x4c, 0x53, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(63).min(63));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

/// The first A record of an answer.
fn first_address(packet: &[u8]) -> Option<Ipv4Addr> {
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let mut at = 12;
    for _ in 0..number(4)? {
        at = skip_name(packet, at)? + 4;
    }
    for _ in 0..number(6)? {
        at = skip_name(packet, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length)?;
        if let (1, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            return Some(Ipv4Addr::from(octets));
        }
        at += 10 + length;
    }
    None
}

/// The position after a name: labels up to the root, or up to a pointer, which ends it.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_answer() {
        let mut packet = question("web-west.bench");
        packet[7] = 1;
        packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 80, 0, 1]);
        assert_eq!(first_address(&packet), Some(Ipv4Addr::new(127, 80, 0, 1)));
        assert_eq!(first_address(&question("web")), None);
        assert_eq!(first_address(&packet[..packet.len() - 1]), None);
    }
}
