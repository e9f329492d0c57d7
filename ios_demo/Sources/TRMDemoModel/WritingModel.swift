import Foundation
import Observation
import TRMCore
import TRMCoreML

/// The writing screen: a model, what it is asked, and what it writes.
@MainActor @Observable
public final class WritingModel {
    public enum Phase: Equatable, Sendable {
        case noModel
        /// The model is being loaded, which may take a minute the first time.
        case preparing
        case ready
        case writing
        /// The text is at its end, for this reason.
        case stopped(StopReason)
        /// In a sentence for the user.
        case failed(String)
    }

    public private(set) var phase = Phase.noModel
    public private(set) var page = Page()
    public private(set) var model: StoredModel?
    public private(set) var engine: Engine?
    /// What the user should know of the device, nil if nothing.
    public private(set) var warning: String?
    /// The text to go on with.
    public var prompt = "Once upon a time"
    /// The words to make a story with.
    public var words = "fox, river, lantern"
    public var settings: WritingSettings {
        didSet { if settings != oldValue { file.save(settings) } }
    }

    private let file: SettingsFile
    private let load: Engine.Load
    private let now: @Sendable () -> Duration
    private let announce: @MainActor (String) -> Void
    private var isLoaded = false
    private var unloadsAfterText = false
    private var signal: StopSignal?
    private var task: Task<Void, Never>?
    /// Work that was superseded must change nothing any more.
    private var turn = 0
    /// What cut the loading short.
    private var interruption: EngineCondition?

    /// - Parameters:
    ///   - now: a clock that never goes back.
    ///   - announce: says a sentence to those who do not see the screen; called once, at the end of each text.
    public init(
        file: SettingsFile, load: @escaping Engine.Load = Engine.load,
        now: @escaping @Sendable () -> Duration = sinceLaunch, announce: @escaping @MainActor (String) -> Void
    ) {
        (self.file, self.load, self.now, self.announce) = (file, load, now, announce)
        settings = file.load()
    }

    // MARK: - The model

    /// Loads a model, or lets go of the one there is.
    public func use(_ model: StoredModel?) {
        let mine = begin(model)
        guard let model else {
            phase = .noModel
            return
        }
        phase = .preparing
        let (load, units) = (load, settings.units)
        task = Task {
            do {
                let engine = try await load(model, units)
                guard mine == turn else { return }
                adopt(engine)
            } catch {
                guard mine == turn else { return }
                fail(error)
            }
        }
    }

    /// Takes a model that is loaded already.
    public func use(_ model: StoredModel, _ engine: Engine) {
        _ = begin(model)
        adopt(engine)
    }

    private func begin(_ model: StoredModel?) -> Int {
        signal?.stop()
        task?.cancel()
        turn += 1
        (self.model, engine, isLoaded, interruption, unloadsAfterText) = (model, nil, false, nil, false)
        settings.model = model?.id
        return turn
    }

    private func adopt(_ engine: Engine) {
        (self.engine, isLoaded) = (engine, true)
        phase = .ready
    }

    /// Gives back the memory of the model, unless it is at work; the next text loads it again.
    public func unload() {
        guard let engine, !isBusy else { return }
        isLoaded = false
        Task { await engine.generator.unload() }
    }

    /// Processors that Core ML tries first; other ones load the model again.
    public var units: ComputeUnits {
        get { settings.units }
        set {
            guard newValue != settings.units else { return }
            settings.units = newValue
            if case .export? = model { use(model) }
        }
    }

    // MARK: - Writing

    public var isBusy: Bool { phase == .preparing || phase == .writing }

    public var canWrite: Bool { engine != nil && !isBusy && !opening.isEmpty }

    public var canStop: Bool { phase == .writing }

    /// Whether the model is not loaded and a second try may help.
    public var canRetry: Bool {
        if case .failed = phase { engine == nil && model != nil } else { false }
    }

    public func write() {
        guard canWrite, let engine else { return }
        let signal = StopSignal()
        self.signal = signal
        interruption = nil
        turn += 1
        let mine = turn
        let writer = PageWriter(settings.mode == .goOn ? opening : "", now: now)
        page = writer.whole
        phase = isLoaded ? .writing : .preparing
        task = Task { await write(with: engine, writer, signal, mine) }
    }

    /// Waits for the work under way.
    func settle() async { await task?.value }

    /// Ends the text; all that was written stays.
    public func stop() { signal?.stop() }

    private func write(with engine: Engine, _ start: PageWriter, _ signal: StopSignal, _ mine: Int) async {
        var writer = start
        do {
            let ids = try prompt(engine.tokenizer)
            if !isLoaded {
                try await engine.generator.prepare()
                guard mine == turn else { return }
                isLoaded = true
                phase = .writing
                writer = PageWriter(start.whole.text, now: now)  // loading is no part of the time to the first token
            }
            for try await event in engine.generator.generate(ids, generation(engine), stop: signal) {
                guard mine == turn else { return }
                switch event {
                case .token(_, let text): if let next = writer.add(text) { page = next }
                case .finished(let summary):
                    page = writer.end(summary)
                    phase = .stopped(summary.reason)
                    announce("\(summary.reason.sentence) \(page.figures)")
                }
            }
        } catch {
            guard mine == turn else { return }
            page = writer.whole
            fail(error)
        }
        if unloadsAfterText {
            unloadsAfterText = false
            unload()
        }
    }

    private func fail(_ error: any Error) {
        let sentence =
            switch (error, interruption) {
            case (is CancellationError, .heat):
                "The device is too hot to prepare the model. Let it cool, and try again."
            case (is CancellationError, _): "Preparing the model was interrupted. Try it again."
            default: error.localizedDescription
            }
        phase = .failed(sentence)
        announce(sentence)
    }

    /// What the model is given to read, as the user typed it.
    private var opening: String {
        switch settings.mode {
        case .goOn: prompt.trimmingCharacters(in: .whitespacesAndNewlines)
        case .words: Self.listed(words).isEmpty ? "" : Self.request(for: words)
        }
    }

    private func prompt(_ tokenizer: Tokenizer) throws -> [Int32] {
        switch settings.mode {
        case .goOn: [tokenizer.bos] + tokenizer.encode(opening)
        case .words:
            try [tokenizer.bos] + tokenizer.chat([ChatMessage(role: .user, content: opening)], reply: true)
        }
    }

    /// The sentence that the model was tuned on: "Write a story with these words: fox, river, lantern."
    nonisolated static func request(for words: String) -> String {
        "Write a story with these words: \(listed(words).joined(separator: ", "))."
    }

    private nonisolated static func listed(_ words: String) -> [String] {
        words.split { $0.isWhitespace || $0 == "," || $0 == ";" || $0 == "." }.map(String.init)
    }

    private func generation(_ engine: Engine) -> GenerationSettings {
        var sampling = engine.sampling
        (sampling.temperature, sampling.seed) = (temperature, settings.seed)
        return GenerationSettings(maxTokens: settings.maxTokens, depth: depth, sampling: sampling)
    }

    // MARK: - The device

    var activity: EngineActivity {
        switch phase {
        case .preparing: .loading
        case .writing: .generating
        case .noModel, .ready, .stopped, .failed: isLoaded ? .idle : .unloaded
        }
    }

    /// Does what the policy says of memory, heat and leaving the foreground.
    public func handle(_ condition: EngineCondition) {
        switch condition.action(during: activity) {
        case .nothing: break
        case .cancelLoading:
            interruption = condition
            task?.cancel()
        case .unload: unload()
        case .unloadAfterText: unloadsAfterText = true
        case .stopForHeat: signal?.stop(.thermal)
        case .stopForBackground: signal?.stop(.background)
        case .warnOfHeat: warning = "The device is hot, so that writing may be slow or stop."
        case .endWarning: warning = nil
        }
    }

    /// Goes on with the loading that leaving the foreground cut short.
    public func resume() {
        guard interruption == .background, canRetry else { return }
        retry()
    }

    public func retry() {
        guard canRetry else { return }
        use(model)
    }
}

// MARK: - The controls

extension WritingModel {
    /// Depths that can be chosen, ascending; empty without a model.
    public var depths: [Int] { engine?.limits.depths ?? model?.depths ?? [] }

    /// The chosen depth, or the model's deepest one.
    public var depth: Int {
        guard let wanted = settings.depth, depths.contains(wanted) else { return depths.last ?? 1 }
        return wanted
    }

    /// Place of the depth among `depths`, for a slider.
    public var depthPlace: Double {
        get { Double(depths.firstIndex(of: depth) ?? 0) }
        set {
            let place = Int(newValue.rounded())
            if depths.indices.contains(place) { settings.depth = depths[place] }
        }
    }

    /// "Pass" is what the model makes over each token.
    public var depthName: String {
        depth == 1 ? "1 pass over each token" : "\(depth) passes over each token"
    }

    public var temperature: Double {
        get { settings.temperature ?? engine?.sampling.temperature ?? SamplingConfig().temperature }
        set { settings.temperature = newValue }
    }

    public var temperatureName: String {
        temperature == 0 ? "0, always the likeliest token" : String(format: "%.2f", temperature)
    }

    /// The seed as it is typed: digits, and none for 0; what is too large for a seed changes nothing.
    public var seedText: String {
        get { settings.seed == 0 ? "" : "\(settings.seed)" }
        set {
            let digits = newValue.filter { ("0"..."9").contains($0) }
            if let seed = digits.isEmpty ? 0 : UInt64(digits) { settings.seed = seed }
        }
    }

    public func newSeed() { settings.seed = UInt64.random(in: 0...999_999) }

    /// The phase as a sentence, which says all that a colour or a symbol might.
    public var status: String {
        switch phase {
        case .noModel: "There is no model yet. Add one under Models."
        case .preparing: "Preparing the model. The first time may take a minute."
        case .ready: "Ready to write with \(model?.name ?? "the model")."
        case .writing: "Writing."
        case .stopped(let reason): reason.sentence
        case .failed(let sentence): sentence
        }
    }
}

extension StopReason {
    /// For people.
    var sentence: String {
        switch self {
        case .end, .stop: "The story is at its end."
        case .length: "The text has the length that was asked for."
        case .context: "The text fills all that the model can remember."
        case .stopped: "Stopped."
        case .thermal: "Stopped, because the device is too hot."
        case .background: "Stopped, because the app left the foreground."
        }
    }
}
