#!/usr/bin/env bash
# Prometheus takes the alerts in examples/, and they fire at what they are for.
. "$(dirname "$0")/../functions.sh"
requires promtool

promtool check rules "$checkout/examples/prometheus-alerts.yml"
cat >"$tmp/rules-test.yml" <<END
rule_files: [$checkout/examples/prometheus-alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'tplstore_filesystem_free_bytes{instance="kvm1",store="/srv/store",kind="store"}'
        values: '10737418240x9 4000000000x20'
      - series: 'tplstore_filesystem_size_bytes{instance="kvm1",store="/srv/store",kind="store"}'
        values: '107374182400x30'
      - series: 'tplstore_errors_total{instance="kvm1",store="/srv/store",volume="vm1"}'
        values: '0x9 5x20'
      - series: 'tplstore_errors_total{instance="kvm1",store="/srv/store",volume="vm2"}'
        values: '3x30'
      - series: 'tplstore_request_duration_seconds_bucket{instance="kvm1",store="/srv/store",op="flush",le="1"}'
        values: '0+1x30'
      - series: 'tplstore_request_duration_seconds_bucket{instance="kvm1",store="/srv/store",op="flush",le="2.5"}'
        values: '0+10x30'
      - series: 'tplstore_request_duration_seconds_bucket{instance="kvm1",store="/srv/store",op="flush",le="+Inf"}'
        values: '0+10x30'
    alert_rule_test:
      - {eval_time: 8m, alertname: TplstoreStoreNearlyFull, exp_alerts: []}
      - {eval_time: 8m, alertname: TplstoreRequestsFail, exp_alerts: []}
    promql_expr_test:
      - expr: count(ALERTS{alertname="TplstoreStoreNearlyFull",alertstate="firing",store="/srv/store"})
        eval_time: 20m
        exp_samples: [{value: 1}]
      - expr: ALERTS{alertname="TplstoreRequestsFail",alertstate="firing"}
        eval_time: 13m
        exp_samples:
          - labels: 'ALERTS{alertname="TplstoreRequestsFail",alertstate="firing",instance="kvm1",severity="critical",store="/srv/store",volume="vm1"}'
            value: 1
      - expr: count(ALERTS{alertname="TplstoreSlowRequests",alertstate="firing",op="flush"})
        eval_time: 30m
        exp_samples: [{value: 1}]
END
promtool test rules "$tmp/rules-test.yml"
