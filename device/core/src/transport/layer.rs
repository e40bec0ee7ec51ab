//! A transport that stands in front of another one.

use super::{Bounds, Endpoint, Figures, Path, QpView, Request, Submitted, Token, Transport};
use crate::handle::{Gid, QpHandle};
use crate::memory::{Memory, Span};
use std::sync::atomic::AtomicU32;

/// Looks at what passes, or changes it; all else goes on to the transport behind it.
pub trait Layer: Send + Sync {
    /// The transport behind it.
    fn inner(&self) -> &dyn Transport;

    /// See [`Transport::submit`].
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted;

    /// See [`Transport::cancel`].
    fn cancel(&self, token: Token);

    /// See [`Transport::lost`].
    fn lost(&self, token: Token) -> bool {
        self.inner().lost(token)
    }

    /// See [`Transport::qp_changed`].
    fn qp_changed(&self, view: &QpView) {
        self.inner().qp_changed(view);
    }
}

impl<L: Layer> Transport for L {
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        Layer::submit(self, request, memory, local)
    }

    fn cancel(&self, token: Token) {
        Layer::cancel(self, token);
    }

    fn lost(&self, token: Token) -> bool {
        Layer::lost(self, token)
    }

    fn path(&self, source: &Gid, peer: &Endpoint) -> Path {
        self.inner().path(source, peer)
    }

    fn figures(&self, qp: QpHandle) -> Option<Figures> {
        self.inner().figures(qp)
    }

    fn expected_psn(&self, qp: QpHandle) -> Option<&'static AtomicU32> {
        self.inner().expected_psn(qp)
    }

    fn qp_changed(&self, view: &QpView) {
        Layer::qp_changed(self, view);
    }

    fn mr_added(&self, key: u32, bounds: &Bounds) {
        self.inner().mr_added(key, bounds);
    }

    fn mr_removed(&self, key: u32) {
        self.inner().mr_removed(key);
    }

    fn gid_bound(&self, gid: Gid, bound: bool) {
        self.inner().gid_bound(gid, bound);
    }
}
