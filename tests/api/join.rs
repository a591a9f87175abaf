//! Joining and leaving: who is counted, from when, and until when.

use crate::helpers::TestApp;

#[tokio::test(start_paused = true)]
async fn closing_a_stream_decrements_the_count() {
    let app = TestApp::new();
    let mut first = app.join("post-1").await;
    assert_eq!(first.next_count().await, (1, 1, 0));
    let second = app.join("post-1").await;
    assert_eq!(first.next_count().await, (2, 2, 0));
    drop(second);
    assert_eq!(first.next_count().await, (1, 1, 0));
}
