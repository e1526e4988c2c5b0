//! Publishes events beside the work: a visitor waits for a status, and nobody for an event. Writes Events.

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};
use tokio::sync::{Mutex, mpsc};

/// Events that may wait. Beyond that the API server is so far behind that more of them would only hold it up longer.
const WAITING: usize = 4096;
/// Events on their way at once: at 60 previews a second, two each, of some 30 ms.
const AT_ONCE: usize = 4;

type Told = (Event, ObjectReference);

/// Who publishes.
pub struct Herald {
    /// Shared, so that events aggregate.
    recorder: Recorder,
    tell: mpsc::Sender<Told>,
    hear: Mutex<mpsc::Receiver<Told>>,
}

impl Herald {
    /// Publishes by this recorder.
    pub fn new(recorder: Recorder) -> Self {
        let (tell, hear) = mpsc::channel(WAITING);
        Self {
            recorder,
            tell,
            hear: Mutex::new(hear),
        }
    }

    /// Has an event published about an object; never waits.
    pub fn tell(&self, event: Event, about: ObjectReference) {
        if let Err(error) = self.tell.try_send((event, about)) {
            tracing::warn!(%error, "an event is dropped");
        }
    }

    /// Publishes for ever. That one cannot be published is logged, and stops nothing.
    pub async fn run(&self) {
        let mut hear = self.hear.lock().await;
        let told = futures::stream::poll_fn(|task| hear.poll_recv(task));
        told.for_each_concurrent(AT_ONCE, |(event, about)| async move {
            if let Err(error) = self.recorder.publish(&event, &about).await {
                tracing::warn!(object = about.name, %error, "failed to publish an event");
            }
        })
        .await;
    }
}
