//! One attempt on this cluster's own endpoints, where the local cluster was picked. No link between: the same admission,
//! the same fields, the same pool of connections as for a peer's caller.

use std::pin::pin;

use http::{Request, Response, StatusCode};
use linkspan_proto::configuration::PortTransport;
use linkspan_proto::identity::SpiffeId;
use linkspan_proto::refusal::Refusal;
use tokio::time::Instant;

use super::{Call, Miss};
use crate::error::Failure;
use crate::http::body::{
    BackendBody, ClientBody, Cut, Frames as _, Local, RequestBody, ResponseBody, Source, is_bodiless,
};
use crate::http::errors::Reply;
use crate::http::exchange::{IdleTimer, Wanted};
use crate::http::headers::Identity;
use crate::http::interim::Interims;
use crate::http::pool::Pool;
use crate::http::upgrade::{self, Tunnel};
use crate::http::{request, upstream, via};
use crate::remote::{Admitted, Refused, admit_local};

impl Call {
    /// Sends the request to a backend of this cluster and waits for the head of the response.
    pub(super) async fn attempt_local(&mut self) -> Result<Response<ResponseBody>, Miss> {
        let admitted = self.admit()?;
        let deadline = self.left()?.map(|left| Instant::now() + left);
        let by = SpiffeId::gateway(&self.connection.gateway.own.trust_domain);
        let identity = Identity::new(&by, admitted.source(), admitted.cluster());
        let body = self.body.take().map_or(RequestBody::Empty, |body| RequestBody::Client(Box::new(body)));
        let http2 = self.connection.http2;
        let mut head = self.head.clone();
        if !via::pass(&mut head.headers, admitted.service(), &self.connection.gateway.own.cluster, head.version) {
            return Err(Miss::cut(Cut::Refused(Refusal::Loop), false));
        }
        let mut request = request::to_backend(head, &identity, body);
        let interims = (!http2).then(|| Interims::of(&mut request));
        let pool = Pool::of_this_worker();
        let mut idle = IdleTimer::default();
        let sent = {
            let mut sending = pin!(upstream::send(&pool, &admitted, http2, request, deadline));
            let mut late = pin!(sleep_until(deadline));
            loop {
                tokio::select! {
                    biased;
                    (status, headers) = Interims::next_of(interims.as_deref()) => self.interim(status, headers),
                    sent = &mut sending => break sent,
                    () = idle.expired(&self.exchange) => return Err(Miss::cut(Cut::Idle, false)),
                    () = &mut late => return Err(Miss::cut(Cut::Deadline, false)),
                }
            }
        };
        match sent {
            Ok(answer) => self.answer_local(answer, deadline),
            Err(failed) => {
                self.exchange.note(|record| record.entry().backend = failed.address);
                let (body, unsent) = recover(failed.unsent);
                let never = unsent && failed.cut.refusal().never_processed();
                let whole = self.take_back(body);
                Err(Miss::cut(failed.cut, never && whole))
            }
        }
    }

    fn admit(&self) -> Result<Admitted, Miss> {
        let connection = &self.connection;
        let mirror = self.route.mirror();
        let (port, source) = ((PortTransport::Tcp, self.route.port()), connection.routed.source.clone());
        let table = connection.gateway.table.load();
        let admitted = admit_local(&table, &mirror.service, port, mirror.endpoint.as_ref(), source);
        admitted.map_err(Miss::refused)
    }

    fn answer_local(
        &mut self,
        answer: upstream::Answer,
        deadline: Option<Instant>,
    ) -> Result<Response<ResponseBody>, Miss> {
        let upstream::Answer { mut response, lease, endpoint } = answer;
        self.exchange.note(|record| record.entry().backend = Some(endpoint.address()));
        let backend_upgrade = hyper::upgrade::on(&mut response);
        let (mut parts, incoming) = response.into_parts();
        // hyper's own: the reason phrase, the pending upgrade. Not ours to pass on.
        parts.extensions.clear();
        let headers = std::mem::take(&mut parts.headers);
        let (head, length) =
            request::from_backend(parts.status, headers).map_err(|_| Miss::cut(Cut::Backend, false))?;
        parts.headers = head.headers;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let on_upgrade = self.upgrade.take().ok_or_else(|| Miss::cut(Cut::Backend, false))?;
            let response = self.respond(parts, Source::Empty, false);
            if let Some(record) = self.exchange.take_record() {
                let tunnel = Tunnel { gateway: self.connection.gateway.clone(), on_upgrade, record };
                self.connection.set_tunnel(Box::pin(upgrade::to_backend(tunnel, backend_upgrade, endpoint)));
            }
            return Ok(response);
        }
        self.release(parts.status);
        let bodiless = is_bodiless(&self.head.method, parts.status);
        let announces = parts.status == StatusCode::NOT_MODIFIED && length.is_some();
        let body = BackendBody::new(incoming, self.connection.http2);
        let source = match (body.at_end(), length) {
            (true, Some(1..)) if !bodiless => return Err(Miss::cut(Cut::Length, false)),
            (true, _) => {
                lease.recycle();
                Source::Empty
            }
            (false, left) => {
                let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
                Source::Backend(Box::new(Local { body, left, lease: Some(lease), _endpoint: endpoint, deadline }))
            }
        };
        Ok(self.respond(parts, source, announces))
    }

    /// The response has begun: a body that waits for `100 Continue` goes on or is not wanted.
    fn release(&self, status: StatusCode) {
        let refused = status.is_client_error() || status.is_server_error();
        if refused && self.exchange.request.wanted() == Wanted::NotYet {
            self.exchange.request.stop();
        } else {
            self.exchange.request.open();
        }
    }
}

impl Miss {
    fn refused(error: Refused) -> Self {
        let refusal: Refusal = error.refusal();
        let failure = Failure::from(error);
        Self { reply: Reply::refused(refusal), elsewhere: failure.elsewhere, note: failure.to_string() }
    }
}

/// The client's body out of a request that was not sent; whether it was not sent.
fn recover(unsent: Option<Box<Request<RequestBody>>>) -> (Option<ClientBody>, bool) {
    match unsent.map(|request| request.into_body()) {
        Some(RequestBody::Client(body)) => (Some(*body), true),
        Some(_) => (None, true),
        None => (None, false),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
