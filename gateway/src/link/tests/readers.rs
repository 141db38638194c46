//! Readers who do not read, and what they cost the others.

use super::*;

/// Streams that nobody reads.
const STALLED: usize = 90;

/// Writes until nothing moves for a second of virtual time; how much went.
async fn fill(mut send: SendHalf) -> (usize, SendHalf) {
    let mut sent = 0;
    let piece = Bytes::from_static(&[7; 16 * 1024]);
    while tokio::time::timeout(Duration::from_secs(20), send.write(piece.clone())).await.is_ok_and(|sent| sent.is_ok())
    {
        sent += piece.len();
    }
    (sent, send)
}

/// F-27, S-29: each costs 128 KiB, and whoever reads is not held up. Two of them would have used up a connection's window of
/// 13 MiB with QUIC's stream windows alone.
#[tokio::test(start_paused = true)]
async fn s_29_f_27_readers_who_do_not_read_cost_little_and_hold_nobody_up() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let mut stalled = Vec::new();
    let mut unread = Vec::new();
    for _ in 0..STALLED {
        let (send, _recv) = open(&east, &west, b"").await;
        unread.push((accept(&mut west).await, _recv));
        stalled.push(tokio::spawn(fill(send)));
    }
    let mut filled = Vec::new();
    for task in stalled {
        let (sent, send) = task.await.unwrap();
        assert!(sent <= 128 * 1024, "{sent} bytes that nobody reads");
        filled.push(send);
    }
    let began = Instant::now();
    let (mut send, _recv) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    let writing = tokio::spawn(async move {
        send.write(Bytes::from(vec![1; 1024 * 1024])).await.unwrap();
        send.finish().unwrap();
    });
    assert_eq!(read_all(&mut incoming.recv).await.unwrap().len(), 1024 * 1024);
    writing.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Credit comes as the reader reads, however late he begins.
#[tokio::test(start_paused = true)]
async fn a_reader_who_begins_late_gets_everything() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (mut send, mut answer) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let whole = Bytes::from(bytes.clone());
    let writing = tokio::spawn(async move {
        send.write(whole).await.unwrap();
        send.finish().unwrap();
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!writing.is_finished());
    assert_eq!(read_all(&mut incoming.recv).await.unwrap(), bytes);
    writing.await.unwrap();
    // And back on the same stream, which has credit of its own.
    let back = Bytes::from(bytes.clone());
    let mut towards = incoming.send;
    let writing = tokio::spawn(async move {
        towards.write_all(&mut [Bytes::from_static(b"head"), back]).await.unwrap();
        towards.finish().unwrap();
    });
    let read = read_all(&mut answer).await.unwrap();
    assert_eq!((&read[..4], &read[4..]), (&b"head"[..], &bytes[..]));
    writing.await.unwrap();
}

/// Who has no credit left reads nothing more from its socket.
#[tokio::test(start_paused = true)]
async fn s_29_there_is_no_room_before_the_reader_reads() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (mut send, _recv) = open(&east, &west, b"").await;
    assert!(send.room().await.unwrap() > 64 * 1024);
    let mut incoming = accept(&mut west).await;
    let (_, mut send) = fill(send).await;
    assert!(tokio::time::timeout(Duration::from_secs(20), send.room()).await.is_err());
    let reading = tokio::spawn(async move { while incoming.recv.read(4096).await.is_ok_and(|read| read.is_some()) {} });
    assert!(send.room().await.unwrap() > 0);
    send.reset(Refusal::Cancelled);
    reading.await.unwrap();
}

/// Whoever waits for credit hears that the reader has gone.
#[tokio::test(start_paused = true)]
async fn a_writer_without_credit_hears_of_the_end() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (send, _recv) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    let (_, mut send) = fill(send).await;
    let writing = tokio::spawn(async move { send.write(Bytes::from_static(&[7; 64 * 1024])).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    incoming.recv.stop(Refusal::Denied);
    assert_eq!(writing.await.unwrap(), Err(StreamError::Stopped(Refusal::Denied)));
}

/// A connection begins with 1,024 streams, and permits more as they are used.
#[tokio::test(start_paused = true)]
async fn more_streams_are_permitted_as_they_are_used() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let mut open_streams = Vec::new();
    for number in 0..3000 {
        let opened = east.links.open(0, &west.cluster()).await;
        let (mut send, recv) = opened.unwrap_or_else(|error| panic!("stream {number}: {error}"));
        send.write(header(&east).encode().unwrap()).await.unwrap();
        open_streams.push((send, recv, accept(&mut west).await));
    }
}

/// A write that was dropped may be taken up again: nothing is lost and nothing is sent twice.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_interrupted_goes_on_where_it_was() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (mut send, _recv) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|index| (index % 251) as u8).collect();
    let mut chunks: Vec<Bytes> = bytes.chunks(100_000).map(Bytes::copy_from_slice).collect();
    let writing = tokio::spawn(async move {
        while tokio::time::timeout(Duration::from_millis(20), send.write_all(&mut chunks)).await.is_err() {}
        send.finish().unwrap();
    });
    assert!(read_all(&mut incoming.recv).await.unwrap() == bytes, "the bytes differ");
    writing.await.unwrap();
}
