//! A backend's response onto the link.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use linkspan_proto::frames::{self, ResponseHead};

use super::{Serving, sleep_until, stopped};
use crate::http::body::{BackendBody, Cut, Gathered, gather};
use crate::http::exchange::Exchange;
use crate::link::SendHalf;
use crate::remote::Review;

impl Serving {
    /// Sends head, body and FIN. Small responses leave as one packet.
    pub(super) async fn respond(
        &mut self,
        head: &ResponseHead,
        body: &mut BackendBody,
        left: Option<u64>,
    ) -> Result<(), Cut> {
        let head = frames::encode_response_head(head).map_err(|_| Cut::Backend)?;
        let Self { gateway, admitted, send, exchange, idle, deadline } = self;
        let review = Review { table: &gateway.table, admitted };
        let mut pump = Pump { send, exchange, body, left, chunks: vec![head] };
        let mut pumping = pin!(pump.run());
        let mut late = pin!(sleep_until(*deadline));
        tokio::select! {
            biased;
            result = &mut pumping => result,
            () = idle.expired(exchange) => Err(Cut::Idle),
            () = &mut late => Err(Cut::Deadline),
            why = review.until_revoked() => Err(Cut::Refused(why)),
        }
    }
}

struct Pump<'a> {
    send: &'a mut SendHalf,
    exchange: &'a Exchange,
    body: &'a mut BackendBody,
    /// Announced bytes that are still to come.
    left: Option<u64>,
    chunks: Vec<Bytes>,
}

impl Pump<'_> {
    async fn run(&mut self) -> Result<(), Cut> {
        let mut gathered = self.prime().await?;
        loop {
            self.send.write_all(&mut self.chunks).await.map_err(Cut::Stream)?;
            self.chunks.clear();
            if gathered == Gathered::End {
                if matches!(self.left, Some(1..)) {
                    return Err(Cut::Length);
                }
                // No await since the last write: data and FIN share a packet.
                return self.send.finish().map_err(Cut::Stream);
            }
            gathered = self.more().await?;
        }
    }

    /// Gathers what is there already, so that it shares the head's packet. hyper reads a body only when it is asked for:
    /// the first look asks, and the task of the connection answers before this one is polled again.
    async fn prime(&mut self) -> Result<Gathered, Cut> {
        let heads = self.chunks.len();
        let mut gathered = self.now().await?;
        if gathered == Gathered::Pending && self.chunks.len() == heads {
            tokio::task::yield_now().await;
            gathered = self.now().await?;
        }
        if gathered != Gathered::End && self.chunks.len() == heads {
            // Tells the other side that there is a body (see `Reader::has_body`).
            self.chunks.push(frames::data_prefix(0));
        }
        Ok(gathered)
    }

    async fn now(&mut self) -> Result<Gathered, Cut> {
        poll_fn(|cx| Poll::Ready(self.gather(cx))).await
    }

    /// Waits for more of the body, or for the peer to lose interest.
    async fn more(&mut self) -> Result<Gathered, Cut> {
        let Self { send, exchange, body, left, chunks } = self;
        // Nothing is asked of the backend that could not be sent on.
        send.room().await.map_err(Cut::Stream)?;
        tokio::select! {
            biased;
            gathered = poll_fn(|cx| match gather_into(body, exchange, left, chunks, cx) {
                Ok(Gathered::Pending) if chunks.is_empty() => Poll::Pending,
                gathered => Poll::Ready(gathered),
            }) => gathered,
            why = send.stopped() => Err(stopped(why)),
        }
    }

    fn gather(&mut self, cx: &mut std::task::Context<'_>) -> Result<Gathered, Cut> {
        gather_into(self.body, self.exchange, &mut self.left, &mut self.chunks, cx)
    }
}

fn gather_into(
    body: &mut BackendBody,
    exchange: &Exchange,
    left: &mut Option<u64>,
    chunks: &mut Vec<Bytes>,
    cx: &mut std::task::Context<'_>,
) -> Result<Gathered, Cut> {
    let mut excess = false;
    let gathered = gather(body, cx, chunks, |bytes| {
        exchange.sent(bytes);
        if let Some(left) = left {
            excess |= *left < bytes as u64;
            *left = left.saturating_sub(bytes as u64);
        }
    })?;
    if excess { Err(Cut::Length) } else { Ok(gathered) }
}
