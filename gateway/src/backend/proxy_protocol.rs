//! PROXY protocol, version 2: tells a TCP backend who calls, for exports that ask for it.
//!
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>, section 2.2.
//!
//! - In: the client's address as the egress gateway saw it, the endpoint that was dialled, the caller's identity.
//! - Out: the header, to be written before the first byte, in one piece.
//! - Never does: invent an address. Where the client's is unknown the header says `UNSPEC` and still carries the identity.
//! - Numbers: at most 16 + 36 + the TLVs; identities are at most 2,048 bytes, certificates 3,500, so the 16-bit length always
//!   suffices.
//!
//! | TLV | content |
//! |---|---|
//! | `0x02` AUTHORITY | the service: `web.shop.svc.cluster.local` |
//! | `0x05` UNIQUE_ID | the trace id, 32 hexadecimal digits, where there is one |
//! | `0x20` SSL | the caller's certificate, where it proved one: flags, `0x21` VERSION, `0x28` CLIENT_CERT (DER) |
//! | `0xE0` | the caller's SPIFFE ID |
//! | `0xE1` | the caller's cluster |
//! | `0xE2` | the assurance: `gateway`, `network` or `mtls` |
//! | `0x03` CRC32C | over the whole header |

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use linkspan_proto::identity::Certificate;

use crate::remote::Admitted;

/// TLV with the caller's SPIFFE ID.
pub const TLV_IDENTITY: u8 = 0xE0;
/// TLV with the caller's cluster.
pub const TLV_CLUSTER: u8 = 0xE1;
/// TLV with the assurance.
pub const TLV_ASSURANCE: u8 = 0xE2;

const TLV_AUTHORITY: u8 = 0x02;
const TLV_CRC32C: u8 = 0x03;
const TLV_UNIQUE_ID: u8 = 0x05;
const TLV_SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CLIENT_CERT: u8 = 0x28;

/// The client speaks TLS (0x01) and showed a certificate on this connection (0x02) and thus in this session (0x04).
const CLIENT_SHOWED_CERTIFICATE: u8 = 0x07;

/// What the mTLS ports of all gateways speak, and nothing else.
const TLS_VERSION: &[u8] = b"TLSv1.3";

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY. LOCAL is for connections that the proxy makes for itself, which these never are.
const VERSION_AND_COMMAND: u8 = 0x21;

const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNSPEC: u8 = 0x00;

/// The header for a connection of this caller to `backend`.
#[must_use]
pub fn header(admitted: &Admitted, client: Option<SocketAddr>, backend: SocketAddr, trace_id: Option<&str>) -> Bytes {
    let source = admitted.source();
    let service = admitted.service();
    let endpoint = admitted.endpoint().map(|endpoint| format!("{endpoint}.")).unwrap_or_default();
    let authority = format!("{endpoint}{}.{}.svc.cluster.local", service.name, service.namespace);
    let mut tlvs = vec![(TLV_AUTHORITY, authority.as_bytes())];
    tlvs.extend(trace_id.map(|id| (TLV_UNIQUE_ID, id.as_bytes())));
    let ssl = source.certificate.as_ref().map(ssl);
    tlvs.extend(ssl.iter().map(|ssl| (TLV_SSL, &ssl[..])));
    tlvs.push((TLV_IDENTITY, source.identity.as_str().as_bytes()));
    tlvs.push((TLV_CLUSTER, admitted.cluster().as_str().as_bytes()));
    tlvs.push((TLV_ASSURANCE, source.assurance.as_str().as_bytes()));
    encode(client, backend, &tlvs)
}

/// Section 2.2.6: flags, the result of the verification, then TLVs of its own. The chain was verified by the gateway to which
/// the client showed it, hence the result is 0.
fn ssl(certificate: &Certificate) -> BytesMut {
    let mut value = BytesMut::with_capacity(certificate.der().len() + 32);
    value.put_u8(CLIENT_SHOWED_CERTIFICATE);
    value.put_u32(0);
    put_tlv(&mut value, SSL_VERSION, TLS_VERSION);
    put_tlv(&mut value, SSL_CLIENT_CERT, certificate.der());
    value
}

/// A header with these TLVs and a CRC32C behind them.
fn encode(client: Option<SocketAddr>, backend: SocketAddr, tlvs: &[(u8, &[u8])]) -> Bytes {
    let mut header = BytesMut::with_capacity(256);
    header.put_slice(&SIGNATURE);
    header.put_u8(VERSION_AND_COMMAND);
    let (family, addresses) = addresses(client, backend);
    header.put_u8(family);
    let length_at = header.len();
    header.put_u16(0);
    header.put_slice(&addresses);
    for (kind, value) in tlvs {
        put_tlv(&mut header, *kind, value);
    }
    put_tlv(&mut header, TLV_CRC32C, &[0; 4]);
    let length = u16::try_from(header.len() - length_at - 2).unwrap_or(u16::MAX);
    header[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    // Computed with the checksum's own field zero (section 2.2.3), which it is until here.
    let checksum = crc32c(&header);
    let checksum_at = header.len() - 4;
    header[checksum_at..].copy_from_slice(&checksum.to_be_bytes());
    header.freeze()
}

/// Family and address block: source address, destination address, source port, destination port. Both addresses are of
/// one family; where they are not, IPv4 is written as IPv4-mapped IPv6.
fn addresses(client: Option<SocketAddr>, backend: SocketAddr) -> (u8, Vec<u8>) {
    let Some(client) = client else { return (UNSPEC, Vec::new()) };
    let mut block = Vec::with_capacity(36);
    let family = match (client.ip().to_canonical(), backend.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            block.extend(from.octets());
            block.extend(to.octets());
            TCP4
        }
        (from, to) => {
            block.extend(in_v6(from));
            block.extend(in_v6(to));
            TCP6
        }
    };
    block.extend(client.port().to_be_bytes());
    block.extend(backend.port().to_be_bytes());
    (family, block)
}

fn in_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn put_tlv(header: &mut BytesMut, kind: u8, value: &[u8]) {
    // Every value is a name, an identity, a certificate or a trace id, all far below 64 KiB by their types.
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    header.put_u8(kind);
    header.put_u16(length);
    header.put_slice(value.get(..length.into()).unwrap_or(value));
}

/// CRC-32C (Castagnoli), RFC 4960 appendix B: reflected polynomial 0x82F63B78.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32c_table();
    !bytes.iter().fold(!0_u32, |crc, byte| {
        let index = (crc ^ u32::from(*byte)) & 0xFF;
        (crc >> 8) ^ TABLE[index as usize]
    })
}

const fn crc32c_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests;
