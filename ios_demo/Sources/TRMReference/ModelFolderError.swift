import Foundation

/// Why a model folder was refused.
public enum ModelFolderError: Error, Equatable {
    /// A file is not there.
    case missing(file: String)
    /// A file is larger than any such file is.
    case tooLarge(file: String, limit: Int)
    /// `config.json` does not say what it must.
    case config(String)
    /// `model.safetensors` is damaged, or not of the model that `config.json` describes.
    case weights(String)
    /// A file is whole, and not the one that the weights were saved with.
    case foreign(file: String)
}

extension ModelFolderError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .missing(let file):
            "There is no \(file); a model folder holds config.json, tokenizer.model and model.safetensors."
        case .tooLarge(let file, let limit): "\(file) must be at most \(limit) bytes."
        case .config(let reason): "config.json: \(reason)."
        case .weights(let reason): "model.safetensors: \(reason)."
        case .foreign(let file):
            "\(file) is not the one that model.safetensors was saved with; restore both from one model."
        }
    }
}
