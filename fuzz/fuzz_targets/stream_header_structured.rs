//! A header made of arbitrary fields, written by the generated code.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use linkspan_proto::generated::stream as wire;
use linkspan_proto::stream_header::{Decoded, StreamHeader};
use prost::Message;

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    service: Option<(String, String)>,
    port: u32,
    endpoint: String,
    source: Option<(String, i32, Vec<u8>)>,
    /// Puts the texts into forms that pass the first checks, so that the later ones are reached.
    plausible: bool,
    trace: Vec<u8>,
    deadline_micros: u64,
    path: Vec<String>,
    attempt: u32,
    client: Option<(Vec<u8>, u32)>,
}

fn label(text: &str, plausible: bool) -> String {
    if plausible { format!("a{}", text.len() % 50) } else { text.to_owned() }
}

fuzz_target!(|input: Input| {
    let open = wire::StreamOpen {
        service: input.service.map(|(namespace, name)| wire::Service {
            namespace: label(&namespace, input.plausible),
            name: label(&name, input.plausible),
        }),
        port: input.port,
        endpoint: input.endpoint,
        source: input.source.map(|(identity, assurance, certificate)| wire::Source {
            identity: if input.plausible { format!("spiffe://{}/x", label(&identity, true)) } else { identity },
            assurance,
            certificate: certificate.into(),
        }),
        trace: input.trace.into(),
        deadline_micros: input.deadline_micros,
        path: input.path.iter().map(|cluster| label(cluster, input.plausible)).collect(),
        attempt: input.attempt,
        client: input.client.map(|(ip, port)| wire::SocketAddress { ip: ip.into(), port }),
    };
    let mut bytes = vec![input.kind];
    open.encode_length_delimited(&mut bytes).expect("a vector grows");
    let Ok(Decoded::Complete { header, consumed }) = StreamHeader::decode(&bytes) else { return };
    assert_eq!(consumed, bytes.len());
    let again = header.encode().expect("what was accepted can be sent on");
    let Ok(Decoded::Complete { header: read, .. }) = StreamHeader::decode(&again) else { panic!("{again:?}") };
    assert_eq!(read, header);
    // Both codecs read the same out of what we write.
    let prefix = 1 + prost::length_delimiter_len(again.len() - 2);
    let reread = wire::StreamOpen::decode(&again[prefix..]).or_else(|_| wire::StreamOpen::decode(&again[2..]));
    let reread = reread.expect("the generated code reads what we write");
    assert_eq!((reread.port, reread.attempt, reread.deadline_micros), (open.port, open.attempt, open.deadline_micros));
    assert_eq!((&reread.path, &reread.endpoint, &reread.trace), (&open.path, &open.endpoint, &open.trace));
});
