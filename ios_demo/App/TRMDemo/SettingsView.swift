import SwiftUI
import TRMDemoModel

/// How tokens are chosen.
struct SettingsView: View {
    @Bindable var writing: WritingModel
    @Environment(\.dismiss) private var dismiss

    var body: some View {
        NavigationStack {
            Form {
                Section("Temperature") {
                    Text(verbatim: writing.temperatureName)
                        .accessibilityHidden(true)
                    Slider(value: $writing.temperature, in: WritingSettings.temperatures, step: 0.05) {
                        Text("Temperature")
                    } minimumValueLabel: {
                        Text("Sure").font(.footnote)
                    } maximumValueLabel: {
                        Text("Bold").font(.footnote)
                    }
                    .accessibilityValue(writing.temperatureName)
                }
                Section {
                    TextField("0", text: $writing.seedText)
                        .keyboardType(.numberPad)
                        .accessibilityLabel("Seed")
                    Button("Draw another seed") { writing.newSeed() }
                } header: {
                    Text("Seed")
                } footer: {
                    Text("The same seed, settings and model give the same text.")
                }
                Section("Length") {
                    Stepper(value: $writing.settings.maxTokens, in: WritingSettings.lengths, step: 16) {
                        Text("At most \(writing.settings.maxTokens) tokens")
                    }
                }
            }
            .navigationTitle("Settings")
            .navigationBarTitleDisplayMode(.inline)
            .toolbar {
                ToolbarItem(placement: .confirmationAction) {
                    Button("Done") { dismiss() }
                }
            }
        }
    }
}
