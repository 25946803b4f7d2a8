from django.http import JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
from notify_tokens import make_token


@require_POST
@never_cache
def token(request):  # Django's CsrfViewMiddleware has looked at X-CSRFToken
    if not request.user.is_authenticated:
        return JsonResponse({"error": "sign in"}, status=401)
    return JsonResponse(make_token(request.user.pk, workspace_id=1))


urlpatterns = [path("notify/token", token)]
