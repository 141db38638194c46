//! `StreamOpen` as protobuf, by hand.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
};

use super::{HeaderError, MAX_HEADER_LEN, StreamHeader, StreamKind};
use crate::identity::{Assurance, Certificate, Source, SpiffeId};
use crate::names::{ClusterName, EndpointName, Namespace, ServiceKey, ServiceName};

/// Field numbers of `StreamOpen`.
mod field {
    pub(super) const SERVICE: u32 = 1;
    pub(super) const PORT: u32 = 2;
    pub(super) const ENDPOINT: u32 = 3;
    pub(super) const SOURCE: u32 = 4;
    pub(super) const TRACE: u32 = 5;
    pub(super) const DEADLINE: u32 = 6;
    pub(super) const PATH: u32 = 7;
    pub(super) const ATTEMPT: u32 = 8;
    pub(super) const CLIENT: u32 = 9;
}

/// The length prefix: its value and how many bytes it took. `None`: not all there yet.
pub(super) fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, HeaderError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 0x80 {
        return Ok(Some((usize::from(first), 1)));
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    // Two bytes hold 16,383, more than the cap: a third byte is one too many.
    let value = usize::from(first & 0x7f) | (usize::from(second & 0x7f) << 7);
    if second >= 0x80 || value > MAX_HEADER_LEN {
        return Err(HeaderError::TooLong);
    }
    Ok(Some((value, 2)))
}

/// Kind, length and body.
pub(super) fn encode(header: &StreamHeader) -> Result<Bytes, HeaderError> {
    let mut body = BytesMut::with_capacity(256);
    if let Some(service) = &header.service {
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        encode_key(field::SERVICE, WireType::LengthDelimited, &mut body);
        encode_varint((bytes_len(namespace.len()) + bytes_len(name.len())) as u64, &mut body);
        put_bytes(1, namespace.as_bytes(), &mut body);
        put_bytes(2, name.as_bytes(), &mut body);
    }
    put_number(field::PORT, u64::from(header.port), &mut body);
    if let Some(endpoint) = &header.endpoint {
        put_bytes(field::ENDPOINT, endpoint.as_str().as_bytes(), &mut body);
    }
    if let Some(source) = &header.source {
        let identity = source.identity.as_str();
        let assurance = assurance_code(source.assurance);
        encode_key(field::SOURCE, WireType::LengthDelimited, &mut body);
        let number = if assurance == 0 { 0 } else { 2 };
        let certificate = source.certificate.as_ref().map(Certificate::der);
        let more = certificate.map_or(0, |der| bytes_len(der.len()));
        encode_varint((bytes_len(identity.len()) + number + more) as u64, &mut body);
        put_bytes(1, identity.as_bytes(), &mut body);
        put_number(2, assurance, &mut body);
        if let Some(der) = certificate {
            put_bytes(3, der, &mut body);
        }
    }
    if let Some(trace) = header.traceparent.as_deref().and_then(trace_bytes) {
        put_bytes(field::TRACE, &trace, &mut body);
    }
    if let Some(deadline) = header.deadline {
        // Zero on the wire means none, so a deadline that has just passed travels as one microsecond.
        let micros = u64::try_from(deadline.as_micros()).unwrap_or(u64::MAX).max(1);
        put_number(field::DEADLINE, micros, &mut body);
    }
    for cluster in &header.path {
        put_bytes(field::PATH, cluster.as_str().as_bytes(), &mut body);
    }
    put_number(field::ATTEMPT, u64::from(header.attempt), &mut body);
    if let Some(client) = header.client {
        put_client(client, &mut body);
    }
    if body.len() > MAX_HEADER_LEN {
        return Err(HeaderError::TooLong);
    }
    let mut whole = BytesMut::with_capacity(body.len() + 3);
    whole.put_u8(header.kind.code());
    encode_varint(body.len() as u64, &mut whole);
    whole.put_slice(&body);
    Ok(whole.freeze())
}

fn put_client(client: SocketAddr, body: &mut BytesMut) {
    let (four, sixteen);
    let ip: &[u8] = match client.ip() {
        IpAddr::V4(ip) => {
            four = ip.octets();
            &four
        }
        IpAddr::V6(ip) => {
            sixteen = ip.octets();
            &sixteen
        }
    };
    let port = u64::from(client.port());
    let port_len = if port == 0 { 0 } else { 1 + encoded_len_varint(port) };
    encode_key(field::CLIENT, WireType::LengthDelimited, body);
    encode_varint((bytes_len(ip.len()) + port_len) as u64, body);
    put_bytes(1, ip, body);
    put_number(2, port, body);
}

/// Encoded size of a bytes field with a tag below 16.
fn bytes_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn put_bytes(tag: u32, bytes: &[u8], body: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, body);
    encode_varint(bytes.len() as u64, body);
    body.put_slice(bytes);
}

fn put_number(tag: u32, value: u64, body: &mut BytesMut) {
    if value != 0 {
        encode_key(tag, WireType::Varint, body);
        encode_varint(value, body);
    }
}

const fn assurance_code(assurance: Assurance) -> u64 {
    match assurance {
        Assurance::Gateway => 0,
        Assurance::Network => 1,
        Assurance::Mtls => 2,
    }
}

/// Calls `each` with every known field; skips the unknown ones.
fn fields<'a>(
    mut body: &'a [u8],
    mut each: impl FnMut(u32, Value<'a>) -> Result<(), HeaderError>,
) -> Result<(), HeaderError> {
    while !body.is_empty() {
        let (tag, wire) = decode_key(&mut body).map_err(|_| HeaderError::Malformed)?;
        match wire {
            WireType::Varint => {
                let value = decode_varint(&mut body).map_err(|_| HeaderError::Malformed)?;
                each(tag, Value::Number(value))?;
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut body).map_err(|_| HeaderError::Malformed)?;
                let length = usize::try_from(length).map_err(|_| HeaderError::Malformed)?;
                let (value, rest) = body.split_at_checked(length).ok_or(HeaderError::Malformed)?;
                body = rest;
                each(tag, Value::Bytes(value))?;
            }
            other => {
                // A type that no field of version 1 has: a field of a later version, or a known tag gone wrong.
                each(tag, Value::Other)?;
                prost::encoding::skip_field(other, tag, &mut body, DecodeContext::default())
                    .map_err(|_| HeaderError::Malformed)?;
            }
        }
    }
    Ok(())
}

/// The value of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Value<'a> {
    fn bytes(self) -> Result<&'a [u8], HeaderError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(HeaderError::Malformed),
        }
    }

    fn text(self) -> Result<&'a str, HeaderError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| HeaderError::Malformed)
    }

    fn number(self) -> Result<u64, HeaderError> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(HeaderError::Malformed),
        }
    }

    fn port(self) -> Result<u16, HeaderError> {
        u16::try_from(self.number()?).map_err(|_| HeaderError::Field("port"))
    }
}

/// Reads `StreamOpen`. As in protobuf, the last of several occurrences of a field counts.
pub(super) fn decode(kind: StreamKind, body: &[u8]) -> Result<StreamHeader, HeaderError> {
    let mut header = StreamHeader::new(kind);
    fields(body, |tag, value| {
        match tag {
            field::SERVICE => header.service = Some(service(value.bytes()?)?),
            field::PORT => header.port = value.port()?,
            field::ENDPOINT => {
                let text = value.text()?;
                header.endpoint = match text {
                    "" => None,
                    _ => Some(EndpointName::parse(text).map_err(|_| HeaderError::Field("endpoint"))?),
                };
            }
            field::SOURCE => header.source = Some(source(value.bytes()?)?),
            field::TRACE => header.traceparent = trace_text(value.bytes()?)?,
            field::DEADLINE => {
                header.deadline = Some(value.number()?).filter(|micros| *micros > 0).map(Duration::from_micros);
            }
            field::PATH => {
                if header.path.len() == super::MAX_PATH_LEN {
                    return Err(HeaderError::LongPath);
                }
                header.path.push(ClusterName::parse(value.text()?).map_err(|_| HeaderError::Field("path"))?);
            }
            field::ATTEMPT => {
                header.attempt = u32::try_from(value.number()?).map_err(|_| HeaderError::Field("attempt"))?;
            }
            field::CLIENT => header.client = Some(client(value.bytes()?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(header)
}

fn service(body: &[u8]) -> Result<ServiceKey, HeaderError> {
    let (mut namespace, mut name) = ("", "");
    fields(body, |tag, value| {
        match tag {
            1 => namespace = value.text()?,
            2 => name = value.text()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(ServiceKey {
        namespace: Namespace::parse(namespace).map_err(|_| HeaderError::Field("namespace"))?,
        name: ServiceName::parse(name).map_err(|_| HeaderError::Field("service name"))?,
    })
}

fn source(body: &[u8]) -> Result<Source, HeaderError> {
    let (mut identity, mut assurance, mut certificate) = ("", Assurance::Gateway, None);
    fields(body, |tag, value| {
        match tag {
            1 => identity = value.text()?,
            2 => {
                assurance = match value.number()? {
                    0 => Assurance::Gateway,
                    1 => Assurance::Network,
                    2 => Assurance::Mtls,
                    // A level that we do not know proves nothing to us.
                    _ => return Err(HeaderError::Field("assurance")),
                }
            }
            3 => {
                certificate = match value.bytes()? {
                    [] => None,
                    der => Some(Certificate::new(der).ok_or(HeaderError::Field("certificate"))?),
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let identity = SpiffeId::parse(identity).map_err(|_| HeaderError::Field("source identity"))?;
    Ok(Source { identity, assurance, certificate })
}

fn client(body: &[u8]) -> Result<SocketAddr, HeaderError> {
    let (mut ip, mut port): (&[u8], u16) = (&[], 0);
    fields(body, |tag, value| {
        match tag {
            1 => ip = value.bytes()?,
            2 => port = value.port()?,
            _ => {}
        }
        Ok(())
    })?;
    let ip = <[u8; 4]>::try_from(ip)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(ip).map(IpAddr::from))
        .map_err(|_| HeaderError::Field("client address"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Trace id, parent id, flags.
const TRACE_LEN: usize = 16 + 8 + 1;

/// The bytes of `00-<32 hex>-<16 hex>-<2 hex>` (W3C Trace Context section 3.2); `None` for anything else, and for the
/// all-zero ids that the standard forbids.
fn trace_bytes(text: &str) -> Option<[u8; TRACE_LEN]> {
    let text: &[u8; 55] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; TRACE_LEN];
    let parts = (text[0..3] == *b"00-" && text[35] == b'-' && text[52] == b'-')
        .then_some(())
        .map(|()| text[3..35].iter().chain(&text[36..52]).chain(&text[53..55]))?;
    let mut digits = parts.map(|digit| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    });
    for byte in &mut bytes {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    (is_trace(&bytes)).then_some(bytes)
}

fn is_trace(bytes: &[u8; TRACE_LEN]) -> bool {
    bytes[..16].iter().any(|byte| *byte != 0) && bytes[16..24].iter().any(|byte| *byte != 0)
}

fn trace_text(bytes: &[u8]) -> Result<Option<String>, HeaderError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes: &[u8; TRACE_LEN] = bytes.try_into().map_err(|_| HeaderError::Field("trace"))?;
    if !is_trace(bytes) {
        return Err(HeaderError::Field("trace"));
    }
    let mut text = String::with_capacity(55);
    text.push_str("00-");
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 16 | 24) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    Ok(Some(text))
}
