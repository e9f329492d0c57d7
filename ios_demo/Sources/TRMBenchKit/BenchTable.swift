extension BenchReport {
    /// The report for people.
    public func table() -> String {
        let chip = device.chip.map { " (\($0))" } ?? ""
        let (result, ttft, tpot) = (summary, summary.ttftMs, summary.tpotMs)
        var lines = [
            "\(model.name)  revision \(model.revision.prefix(12))  parameters \(model.parameters)  depth \(model.recursions)",
            "\(device.model)\(chip)  \(device.os) \(device.osVersion)  \(tool.runtime) \(tool.build)",
            "prompt_tokens \(config.promptTokens)  new_tokens \(config.newTokens)  trials \(trials.count)  \(config.prompt)",
            "prefill  tokens_per_s \(shown(result.prefillTokensPerS))",
            "decode   tokens_per_s \(shown(result.decodeTokensPerS))",
            "ttft     ms p50 \(shown(ttft.p50))  p90 \(shown(ttft.p90))  p95 \(shown(ttft.p95))",
            "token    ms p50 \(shown(tpot.p50))  p90 \(shown(tpot.p90))  p95 \(shown(tpot.p95))",
            "load     ms \(shown(load.loadMs))  first_prediction_ms \(shown(load.firstPredictionMs))",
            "memory   MB \(shown(Double(result.memoryPeakBytes ?? 0) / 1e6))",
        ]
        if let long = result.sustained {
            lines.append(
                "sustained  s \(shown(long.seconds))  first_tokens_per_s \(shown(long.firstTokensPerS))"
                    + "  last_tokens_per_s \(shown(long.lastTokensPerS))")
        }
        lines += (result.invalidBecause ?? []).map { "not valid: \($0)" }
        return lines.joined(separator: "\n")
    }
}
