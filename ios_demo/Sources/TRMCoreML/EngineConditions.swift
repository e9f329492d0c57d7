import Foundation

/// What happens to the device or the app while there is an engine.
public enum EngineCondition: Equatable, Sendable {
    case memoryWarning
    case heat(Heat)
    case background

    /// As `ProcessInfo.ThermalState`.
    public enum Heat: Int, Sendable, CaseIterable {
        case nominal, fair, serious, critical
    }
}

/// What the app is doing with its engine.
public enum EngineActivity: Sendable, CaseIterable {
    case unloaded, loading, idle, generating
}

/// What the app is to do.
public enum EngineAction: Equatable, Sendable {
    case nothing
    case cancelLoading
    case unload
    /// The text under way ends first, as it would have.
    case unloadAfterText
    case stopForHeat
    /// A submission to the GPU from the background ends the app.
    case stopForBackground
    case warnOfHeat
    case endWarning
}

extension EngineCondition {
    public func action(during activity: EngineActivity) -> EngineAction {
        switch (self, activity) {
        case (.memoryWarning, .idle): .unload
        case (.memoryWarning, .generating): .unloadAfterText
        case (.memoryWarning, .unloaded), (.memoryWarning, .loading): .nothing
        case (.background, .generating): .stopForBackground
        case (.background, .loading): .cancelLoading
        case (.background, .unloaded), (.background, .idle): .nothing
        case (.heat(.critical), .generating): .stopForHeat
        case (.heat(.critical), .loading): .cancelLoading
        case (.heat(.critical), _), (.heat(.serious), _): .warnOfHeat
        case (.heat(.nominal), _), (.heat(.fair), _): .endWarning
        }
    }
}

#if canImport(Darwin)
    extension EngineCondition.Heat {
        /// A state that this app does not know is taken for a bad one.
        public init(_ state: ProcessInfo.ThermalState) { self = Self(rawValue: state.rawValue) ?? .critical }
    }
#endif
