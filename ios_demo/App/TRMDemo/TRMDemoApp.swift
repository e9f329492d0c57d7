import Accessibility
import SwiftUI
import TRMDemoModel

@main
struct TRMDemoApp: App {
    @State private var app = AppModel(
        places: AppModel.Places(
            support: .applicationSupportDirectory, documents: .documentsDirectory,
            bundled: Bundle.main.url(forResource: "Model", withExtension: nil)),
        announce: { AccessibilityNotification.Announcement($0).post() })

    var body: some Scene {
        WindowGroup {
            RootView()
                .environment(app)
                .modifier(DeviceEvents(app: app))
                .task { app.open() }
        }
    }
}
