//! Several calls at once, in one task.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Waits for all, and gives their results in the same order. All of them are looked at whenever one can go on: meant for
/// the regions of a publication, not for thousands.
pub async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Option<Pin<Box<F>>>> = futures.into_iter().map(|f| Some(Box::pin(f))).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(move |context| {
        let mut pending = false;
        for (slot, result) in running.iter_mut().zip(&mut done) {
            let Some(future) = slot else { continue };
            match future.as_mut().poll(context) {
                Poll::Ready(output) => (*slot, *result) = (None, Some(output)),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(done.drain(..).flatten().collect()) }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_run_at_once_and_keep_their_order() {
        let barrier = tokio::sync::Barrier::new(3);
        let one = async |number: u32| {
            barrier.wait().await;
            number
        };
        assert_eq!(all([3, 1, 2].map(one)).await, [3, 1, 2]);
        assert_eq!(all(Vec::<std::future::Ready<()>>::new()).await, []);
    }
}
