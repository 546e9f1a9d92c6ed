"""What a run reports: step times, metrics, TensorBoard files, traces, hangs and slow hosts.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  ledger                   which batch each step had: ledger.jsonl
  meter.Meter              times steps, averages metrics over windows
  metrics.Progress         the bar or the lines on standard error
  metrics.MetricsWriter    metrics.jsonl and TensorBoard files (of which tensorboard makes the bytes)
  metrics.peak_rss_bytes   peak memory of this process
  profiling.Profile        traces for xprof; `profiling.check` refuses a run that is too short for one
  slow_hosts.SlowHosts     which of several hosts holds the others up
  watchdog.Watchdog        ends a run in which nothing moves, and writes where it stands
"""

__all__ = ['ledger', 'meter', 'metrics', 'profiling', 'slow_hosts', 'watchdog']
