import Foundation
import TRMCore

/// Measures one model at one depth. What it asks of its surroundings can be replaced.
public struct BenchRunner: Sendable {
    public let plan: BenchPlan
    public let depth: Int
    /// Nanoseconds since any moment.
    public var clock: @Sendable () -> Int
    /// Waits for so many seconds.
    public var sleep: @Sendable (Double) async throws -> Void
    public var memory: @Sendable () -> Int = MemoryProbe.bytes
    public var thermal: @Sendable () -> Thermal = Thermal.now
    /// Takes a line after every text.
    public var progress: @Sendable (String) -> Void = { _ in }

    static let patience = 60  // seconds at most that a trial waits for a hot device
    static let window = 10.0  // seconds that one speed of sustained writing is taken over

    public init(plan: BenchPlan, depth: Int) {
        (self.plan, self.depth) = (plan, depth)
        let start = SuspendingClock.now
        clock = { nanoseconds(SuspendingClock.now - start) }
        sleep = { try await Task.sleep(for: .seconds($0)) }
    }

    /// What was measured of one model.
    public struct Measured: Sendable {
        public let trials: [Trial]
        public var load: Load
        public let sustained: Sustained?
    }

    /// Makes the model, which is timed too, and measures it.
    ///
    /// - Throws: `BenchError`, `CancellationError`, or what the model throws.
    public func run(_ make: @Sendable () throws -> any StepModel) async throws -> Measured {
        let start = clock()
        let model = try make()
        let made = clock()
        try plan.check(context: model.context)
        let prompt = try plan.prompt(vocabulary: model.vocabulary)
        let first = try firstPrediction(model, prompt)
        var trials: [Trial] = []
        for number in 1 - plan.warmup...plan.trials {
            if number > 1 && plan.cooldown > 0 { try await sleep(plan.cooldown) }
            var waited = 0
            while waited < Self.patience, thermal().hot {
                try await sleep(1)
                waited += 1
            }
            let trial = try measure(model, prompt)
            if number > 0 { trials.append(trial) }
            let label = number > 0 ? "trial \(number)/\(plan.trials)" : "warm-up"
            let decode = Double(trial.tpotNs.reduce(0, +)) / 1e6
            progress(
                "\(label)  ttft_ms \(shown(Double(trial.ttftNs) / 1e6))  tokens \(trial.tpotNs.count + 1)"
                    + "  decode_ms \(shown(decode))")
        }
        let load = Load(compileMs: nil, loadMs: Double(made - start) / 1e6, firstPredictionMs: Double(first) / 1e6)
        let sustained = plan.sustained > 0 ? try sustain(model, prompt) : nil
        return Measured(trials: trials, load: load, sustained: sustained)
    }

    /// Nanoseconds of the first prompt and the first single token.
    private func firstPrediction(_ model: any StepModel, _ prompt: [Int32]) throws -> Int {
        try model.reset(depth: depth)
        let start = clock()
        _ = try model.append(prompt)
        _ = try model.append(Array(prompt.prefix(1)))
        return clock() - start
    }

    /// Reads a prompt and makes `newTokens`, fewer if scores are no numbers.
    private func measure(_ model: any StepModel, _ prompt: [Int32]) throws -> Trial {
        try model.reset(depth: depth)
        let before = thermal()
        let start = clock()
        var scores = try model.append(prompt)
        let read = clock()
        var tokens = [greatest(scores)]
        var times = [clock()]
        while tokens.count < plan.newTokens, scores[tokens[tokens.count - 1]].isFinite {
            try Task.checkCancellation()
            scores = try model.append([Int32(tokens[tokens.count - 1])])
            tokens.append(greatest(scores))
            times.append(clock())
        }
        return Trial(
            ttftNs: times[0] - start, prefillNs: read - start, tpotNs: zip(times.dropFirst(), times).map { $0 - $1 },
            stopReason: scores[tokens[tokens.count - 1]].isFinite ? "length" : "not_finite", thermalBefore: before,
            thermalAfter: thermal(), memoryPeakBytes: memory(), tokensSha256: digest(of: tokens))
    }

    /// Writes texts one after another for `plan.sustained` seconds, the reading of their prompts included.
    private func sustain(_ model: any StepModel, _ prompt: [Int32]) throws -> Sustained {
        var (windows, tokens) = ([Sustained.Window](), 0)
        let start = clock()
        var (opened, now) = (start, start)
        func seconds(_ from: Int) -> Double { Double(now - from) / 1e9 }
        while seconds(start) < plan.sustained {
            try model.reset(depth: depth)
            var scores = try model.append(prompt)
            for made in 1...plan.newTokens where seconds(start) < plan.sustained {
                try Task.checkCancellation()
                let token = greatest(scores)
                guard scores[token].isFinite else { throw BenchError.noTokens }
                if made < plan.newTokens { scores = try model.append([Int32(token)]) }
                (tokens, now) = (tokens + 1, clock())
                if seconds(opened) >= Self.window || seconds(start) >= plan.sustained {
                    windows.append(Sustained.Window(tokens: tokens, seconds: seconds(opened), thermal: thermal()))
                    progress(
                        "sustained  s \(shown(seconds(start)))  tokens_per_s \(shown(windows.last?.tokensPerS ?? 0))")
                    (tokens, opened) = (0, now)
                }
            }
        }
        return Sustained(seconds: seconds(start), windows: windows)
    }
}

/// The first of the largest scores; a NaN counts as larger than all, as in NumPy.
func greatest(_ scores: [Float]) -> Int {
    var best = 0
    for (place, score) in scores.enumerated() where !(score <= scores[best]) {
        if scores[best].isNaN { break }
        best = place
    }
    return best
}

/// SHA-256 of the ids as little-endian int32.
func digest(of tokens: [Int]) -> String {
    let bytes = tokens.flatMap { token in withUnsafeBytes(of: Int32(token).littleEndian) { Array($0) } }
    return SHA256Hash.hexadecimal(of: bytes)
}

func nanoseconds(_ duration: Duration) -> Int {
    let (seconds, attoseconds) = duration.components
    return Int(seconds) * 1_000_000_000 + Int(attoseconds / 1_000_000_000)
}

func shown(_ value: Double) -> String { String(format: "%.2f", value) }
