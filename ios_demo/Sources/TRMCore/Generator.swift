import Foundation

/// Text from a model, token by token: prefill, choose, decode, and know when to stop.
///
/// The model is made inside and never leaves, so that its calls cannot overlap. One text is written after another.
public actor Generator {
    #if canImport(Darwin)
        // A step takes a thread whole: one of its own, not one of those that all tasks share.
        private let queue = DispatchSerialQueue(label: "TRMCore.Generator")
        public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }
    #endif

    private let codec: any TextCodec
    private let makeModel: @Sendable () throws -> any StepModel
    private let pieceLength: Int
    private let now: @Sendable () -> Duration
    private var model: (any StepModel)?

    /// - Parameters:
    ///   - codec: the tokenizer that the model was trained with.
    ///   - pieceLength: prompt tokens read between two looks at the stop signal; a multiple of what the model reads
    ///     at once wastes nothing.
    ///   - now: a clock that never goes back.
    ///   - makeModel: called before the first text, and again after `unload`.
    public init(
        codec: any TextCodec, pieceLength: Int = 64, now: @escaping @Sendable () -> Duration = sinceLaunch,
        makeModel: @escaping @Sendable () throws -> any StepModel
    ) {
        self.codec = codec
        self.pieceLength = max(pieceLength, 1)
        self.now = now
        self.makeModel = makeModel
    }

    /// Makes the model if there is none, which may take long, and says what it can take.
    @discardableResult
    public func prepare() throws -> ModelLimits {
        let model = try prepared()
        return ModelLimits(vocabulary: model.vocabulary, context: model.context, depths: model.depths)
    }

    /// Lets go of the model, once the text that is being written is at its end.
    public func unload() { model = nil }

    /// Write on from a text, which begins with `bos`.
    public nonisolated func generate(
        _ text: String, _ settings: GenerationSettings = GenerationSettings(), stop: StopSignal = StopSignal()
    ) -> AsyncThrowingStream<GenerationEvent, any Error> {
        stream(settings, stop) { codec in try [codec.bos] + codec.encode(text) }
    }

    /// Write on from a prompt.
    ///
    /// - Parameters:
    ///   - prompt: ids, `bos` first.
    ///   - settings: when to stop, and how each token is chosen; the draw of the n-th token is number n, from 0.
    ///   - stop: stops it from outside.
    /// - Returns: a token at a time, then the summary; it ends with a `GenerationError`, or the model's own error, if
    ///   the prompt does not fit, the settings do not suit the model, or its scores are not numbers.
    public nonisolated func generate(
        _ prompt: [Int32], _ settings: GenerationSettings = GenerationSettings(), stop: StopSignal = StopSignal()
    ) -> AsyncThrowingStream<GenerationEvent, any Error> {
        stream(settings, stop) { _ in prompt }
    }

    private nonisolated func stream(
        _ settings: GenerationSettings, _ stop: StopSignal,
        _ prompt: @escaping @Sendable (any TextCodec) throws -> [Int32]
    ) -> AsyncThrowingStream<GenerationEvent, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    let summary = try await write(prompt(codec), settings, stop) { continuation.yield($0) }
                    continuation.yield(.finished(summary))
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { if case .cancelled = $0 { task.cancel() } }
        }
    }

    private func prepared() throws -> any StepModel {
        if let model { return model }
        let made = try makeModel()
        guard made.vocabulary == codec.vocabulary else {
            throw GenerationError.vocabularies(expected: codec.vocabulary, found: made.vocabulary, place: "model")
        }
        model = made
        return made
    }

    private func write(
        _ prompt: [Int32], _ settings: GenerationSettings, _ stop: StopSignal,
        _ tell: @Sendable (GenerationEvent) -> Void
    ) throws -> GenerationSummary {
        let model = try prepared()
        let depth = try opened(model, prompt, settings.depth)
        var draft = try Draft(prompt, settings, codec)
        var watch = Stopwatch(now: now)
        func asked() -> StopReason? { stop.cause?.reason ?? (Task.isCancelled ? .stopped : nil) }

        var scores: [Float] = []
        for start in stride(from: 0, to: prompt.count, by: pieceLength) {
            if let reason = asked() { return watch.summary(reason, prompt.count, depth) }
            scores = try read(model, Array(prompt[start..<min(start + pieceLength, prompt.count)]))
        }
        watch.prefilled()
        while true {
            let id = try draft.choose(scores)
            watch.chosen()
            let full = model.position + 1 == model.context
            let (text, reason) = try draft.add(id, or: full ? .context : asked())
            tell(.token(id, text: text))
            if let reason { return watch.summary(reason, prompt.count, depth) }
            scores = try read(model, [id])
        }
    }

    /// Begins a text, once the prompt is known to fit; gives the depth it is read at.
    private func opened(_ model: any StepModel, _ prompt: [Int32], _ asked: Int?) throws -> Int {
        guard (1..<max(model.context, 1)).contains(prompt.count) else {
            throw GenerationError.prompt(tokens: prompt.count, context: model.context)
        }
        if let id = prompt.first(where: { !(0..<model.vocabulary).contains(Int($0)) }) {
            throw GenerationError.token(id: Int(id), vocabulary: model.vocabulary, place: "prompt")
        }
        guard let depth = asked ?? model.depths.last, model.depths.contains(depth) else {
            throw GenerationError.depth(found: asked ?? 0, allowed: model.depths)
        }
        try model.reset(depth: depth)
        return depth
    }

    private func read(_ model: any StepModel, _ ids: [Int32]) throws -> [Float] {
        let scores = try model.append(ids)
        guard scores.count == model.vocabulary else {
            throw GenerationError.vocabularies(expected: model.vocabulary, found: scores.count, place: "scores")
        }
        return scores
    }
}

/// Time that a process has been awake, since the first call.
public let sinceLaunch: @Sendable () -> Duration = {
    let clock = SuspendingClock()
    let launch = clock.now
    return { launch.duration(to: clock.now) }
}()

/// The times of one text.
private struct Stopwatch {
    let now: @Sendable () -> Duration
    private let start: Duration
    private var prefill: Duration?
    private var tokens: [Duration] = []

    init(now: @escaping @Sendable () -> Duration) {
        self.now = now
        start = now()
    }

    mutating func prefilled() { prefill = now() }
    mutating func chosen() { tokens.append(now()) }

    func summary(_ reason: StopReason, _ promptTokens: Int, _ depth: Int) -> GenerationSummary {
        GenerationSummary(
            reason: reason, promptTokens: promptTokens, depth: depth, tokens: tokens.count,
            prefillNanoseconds: prefill.map { ($0 - start).nanoseconds },
            firstNanoseconds: tokens.first.map { ($0 - start).nanoseconds },
            tokenNanoseconds: zip(tokens.dropFirst(), tokens).map { ($0 - $1).nanoseconds })
    }
}

extension Duration {
    fileprivate var nanoseconds: Int64 {
        components.seconds * 1_000_000_000 + components.attoseconds / 1_000_000_000
    }
}
