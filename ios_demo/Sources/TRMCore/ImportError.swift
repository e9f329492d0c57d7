import Foundation

/// Why a folder was not imported. Paths are inside the folder.
public enum ImportError: Error, Equatable, Sendable {
    case notAFolder(String)
    case noManifest
    case tooManyFiles(most: Int)
    case tooLarge(bytes: Int, most: Int)
    case link(String)
    case special(String)
    case unlisted(String)
    case missing(String)
    /// The manifest lists no file that a model needs.
    case incomplete(needs: String)
    case wrongSize(String, bytes: Int, wanted: Int)
    case changed(String)
    case noSpace(needed: Int, free: Int)
    case unreadable(String, reason: String)
    case unwritable(reason: String)
}

extension ImportError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .notAFolder(let name): "\(name) is no folder. Choose the folder that python -m convert wrote."
        case .noManifest: "There is no manifest.json. Choose the folder that python -m convert wrote."
        case .tooManyFiles(let most): "The folder holds more than \(most) files, so it is no exported model."
        case .tooLarge(let bytes, let most):
            "The model takes \(Self.megabytes(bytes)), and this app takes at most \(Self.megabytes(most))."
        case .link(let path): "\(path) is a link. An exported model has none; export it again."
        case .special(let path): "\(path) is no plain file. Export the model again."
        case .unlisted(let path): "\(path.debugDescription) does not belong to the model. Remove it or export again."
        case .missing(let path): "\(path) is missing. Copy the whole folder again."
        case .incomplete(let needs): "The model has no \(needs). Export it again."
        case .wrongSize(let path, let bytes, let wanted):
            "\(path) has \(bytes) bytes instead of \(wanted). Copy the whole folder again."
        case .changed(let path): "\(path) is damaged: it is not the file that was exported. Copy the folder again."
        case .noSpace(let needed, let free):
            "The model needs \(Self.megabytes(needed)) of free space, and there are \(Self.megabytes(free))."
        case .unreadable(let path, let reason): "\(path.isEmpty ? "The folder" : path) cannot be read: \(reason)"
        case .unwritable(let reason): "The model could not be stored: \(reason)"
        }
    }

    private static func megabytes(_ bytes: Int) -> String { "\((bytes + 999_999) / 1_000_000) MB" }
}
