import Foundation

/// Why a manifest was refused.
public enum ManifestError: Error, Equatable, Sendable {
    case tooLarge(bytes: Int, most: Int)
    case notJSON(offset: Int)
    case notAnExport
    case otherVersion(read: Int)
    case unknownKey(String)
    case missingKey(String)
    case wrongType(String, wanted: String)
    case outOfRange(String, value: Int, least: Int, most: Int)
    /// Parts of it contradict one another, or the format.
    case inconsistent(String)
    /// A file is not to lie inside the folder.
    case badPath(String)
}

extension ManifestError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .tooLarge(let bytes, let most):
            "manifest.json must be at most \(most) bytes, and is \(bytes). Export the model again."
        case .notJSON(let offset): "manifest.json is damaged at byte \(offset). Export the model again."
        case .notAnExport: "This is not an exported model. Choose a folder that python -m convert wrote."
        case .otherVersion(let read):
            "This model was exported for another version of the app, which reads version \(read) only."
        case .unknownKey(let key): "manifest.json has \(key), which this app does not know. Update the app."
        case .missingKey(let key): "manifest.json lacks \(key). Export the model again."
        case .wrongType(let key, let wanted): "In manifest.json, \(key) must be \(wanted). Export the model again."
        case .outOfRange(let key, let value, let least, let most):
            "In manifest.json, \(key) must be from \(least) to \(most), and is \(value). Export the model again."
        case .inconsistent(let rule): "manifest.json contradicts itself: \(rule). Export the model again."
        case .badPath(let path): "manifest.json lists a file outside the folder: \(path.debugDescription)."
        }
    }
}
