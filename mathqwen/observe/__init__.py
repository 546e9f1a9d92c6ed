"""What a run reports: step times, metrics, TensorBoard files, traces.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  ledger                   which batch each step had: ledger.jsonl
  meter.Meter              times steps, averages metrics over windows
  metrics.Progress         the bar or the lines on standard error
  metrics.MetricsWriter    metrics.jsonl and TensorBoard files
  metrics.peak_rss_bytes   peak memory of this process
  profiling.Profile        traces for xprof; `profiling.check` refuses a run that is too short for one
  tensorboard              the bytes of event files
"""

__all__ = ['ledger', 'meter', 'metrics', 'profiling', 'tensorboard']
