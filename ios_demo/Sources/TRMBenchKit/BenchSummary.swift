/// What the trials come to, and why they do not count if they do not.
public struct Summary: Codable, Equatable, Sendable {
    public let decodeTokensPerS, prefillTokensPerS: Double
    public let ttftMs, tpotMs: Distribution
    public let memoryPeakBytes: Int?
    public let valid: Bool
    public let invalidBecause: [String]?
    public let sustained: Sustained?

    init(
        _ trials: [Trial], plan: BenchPlan, device: DeviceInfo, build: String, sustained: Sustained?
    ) throws {
        let gaps = trials.flatMap(\.tpotNs)
        guard let ttft = Distribution(trials.map { Double($0.ttftNs) / 1e6 }),
            let tpot = Distribution(gaps.map { Double($0) / 1e6 })
        else { throw BenchError.noTokens }
        (ttftMs, tpotMs) = (ttft, tpot)
        // A clock that stood still must not make a number that JSON does not have.
        decodeTokensPerS = Double(gaps.count) * 1e9 / Double(max(1, gaps.reduce(0, +)))
        let prefill = trials.reduce(0) { $0 + $1.prefillNs }
        prefillTokensPerS = Double(plan.promptTokens * trials.count) * 1e9 / Double(max(1, prefill))
        memoryPeakBytes = trials.map(\.memoryPeakBytes).max()
        let reasons = Self.reasons(trials, plan: plan, device: device, build: build)
        (valid, invalidBecause, self.sustained) = (reasons.isEmpty, reasons, sustained)
    }

    private static func reasons(_ trials: [Trial], plan: BenchPlan, device: DeviceInfo, build: String) -> [String] {
        var reasons: [String] = []
        for (place, trial) in trials.enumerated() {
            if trial.stopReason != "length" {
                let made = "\(trial.tpotNs.count + 1) of \(plan.newTokens) tokens"
                reasons.append("trial \(place + 1) stopped after \(made): \(trial.stopReason)")
            }
            let states = Set([trial.thermalBefore, trial.thermalAfter].filter(\.hot).map(\.rawValue)).sorted()
            if !states.isEmpty {
                let state = states.joined(separator: " and ")
                reasons.append("trial \(place + 1) ran on a machine whose thermal state was \(state)")
            }
        }
        if Set(trials.map(\.tokensSha256)).count > 1 {
            reasons.append("greedy trials must make the same tokens, and did not")
        }
        if device.lowPowerMode == true { reasons.append("Low Power Mode was on") }
        if device.simulator { reasons.append("a simulator is not the device that it shows") }
        if build == "debug" { reasons.append("a debug build is slow; build with -c release") }
        return reasons
    }
}

/// The speed of writing without a pause, prompts included, as a device warms up.
public struct Sustained: Codable, Equatable, Sendable {
    public struct Window: Codable, Equatable, Sendable {
        public let tokens: Int
        public let seconds, tokensPerS: Double
        /// At its end.
        public let thermal: Thermal

        init(tokens: Int, seconds: Double, thermal: Thermal) {
            (self.tokens, self.seconds, self.thermal) = (tokens, seconds, thermal)
            tokensPerS = Double(tokens) / max(seconds, 1e-9)
        }
    }

    public let seconds: Double
    public let windows: [Window]
    /// Of the windows in the first 30 seconds and the last 60; of the first and the last one if they are longer.
    public let firstTokensPerS, lastTokensPerS: Double

    init(seconds: Double, windows: [Window]) {
        (self.seconds, self.windows) = (seconds, windows)
        firstTokensPerS = Self.rate(windows, within: 30)
        lastTokensPerS = Self.rate(windows.reversed(), within: 60)
    }

    private static func rate(_ windows: [Window], within most: Double) -> Double {
        var (tokens, seconds) = (0, 0.0)
        for window in windows {
            if tokens > 0 && seconds + window.seconds > most + 1 { break }  // a window ends with a token, a bit late
            (tokens, seconds) = (tokens + window.tokens, seconds + window.seconds)
        }
        return Double(tokens) / max(seconds, 1e-9)
    }
}
